// Package control is the control socket between the command line and a running
// instance: messages, client and server. The messages travel as JSON over HTTP
// on a unix socket that only its owner may open.
package control

import (
	"errors"
	"time"
)

// Exit is a status that a lacuna command ends with.
type Exit int

// The exit statuses.
const (
	ExitOK           Exit = 0
	ExitError        Exit = 1
	ExitUsage        Exit = 2
	ExitNotSupported Exit = 3 // by this kernel, this filesystem or this user's rights
	ExitCorrupt      Exit = 4
	ExitUnreachable  Exit = 5 // the source cannot be reached or does not give the data
	ExitInUse        Exit = 6
)

// Error is an error as a person sees it.
type Error struct {
	// Message says what was being done to what, and what went wrong.
	Message string `json:"message"`
	// Hint says what to do next; empty where nothing is known.
	Hint string `json:"hint,omitempty"`
	// Exit is the status that the command ends with.
	Exit Exit `json:"exit"`
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// ErrNotRunning: nobody listens on the control socket.
var ErrNotRunning = errors.New("no lacuna daemon listens")

// AttachRequest asks for a source to appear as a file.
type AttachRequest struct {
	// Source is an http or https URL, or the absolute path of a local file.
	Source string `json:"source"`
	// File is the absolute path where it appears: absent, or an empty file.
	File string `json:"file"`
	// SHA256 in hexadecimal that the whole must have, or empty.
	SHA256 string `json:"sha256,omitempty"`
}

// AttachReply tells what was attached.
type AttachReply struct {
	Object string `json:"object"`
	Size   int64  `json:"size"`
	// Notes are what the user should know of the source, a sentence each.
	Notes []string `json:"notes,omitempty"`
}

// DetachRequest undoes an attach or a bind.
type DetachRequest struct {
	// Path is the attached file or the bound directory, absolute.
	Path string `json:"path"`
	// Hydrate leaves the whole data at Path as an ordinary file.
	Hydrate bool `json:"hydrate,omitempty"`
}

// BindRequest asks for a directory of hollow files to be served.
type BindRequest struct {
	// Dir holds the files, Devnode is the socket to make; both absolute.
	Dir     string `json:"dir"`
	Devnode string `json:"devnode"`
}

// BindReply tells what was bound.
type BindReply struct {
	Files int      `json:"files"`
	Notes []string `json:"notes,omitempty"`
}

// MountRequest asks for an image to appear as a directory.
type MountRequest struct {
	// Image is a reference of an image in a registry, or oci-layout:PATH or
	// docker-archive:PATH with an absolute path.
	Image string `json:"image,omitempty"`
	// Manifest is the absolute path of a list of files to mount in place of an
	// image: see package manifest.
	Manifest string `json:"manifest,omitempty"`
	// Dir is the absolute path where it appears: absent, or an empty directory.
	Dir string `json:"dir"`
	// Platform is os/arch or os/arch/variant; empty: this machine's.
	Platform string `json:"platform,omitempty"`
	// Authfile has credentials, in place of the daemon's user's.
	Authfile string `json:"authfile,omitempty"`
	// DockerConfig is the directory of docker's config.json.
	DockerConfig string `json:"docker_config,omitempty"`
	// HostsDir has mirrors as containerd's hosts.toml files say them.
	HostsDir string `json:"hosts_dir,omitempty"`
	// PlainHTTP speaks to the registry without encryption.
	PlainHTTP bool `json:"plain_http,omitempty"`
	// Format is how layers are to be read: estargz, zstdchunked, soci, soci-v2,
	// soci-v1 or scanned; empty: each in the best way that it has.
	Format string `json:"format,omitempty"`
}

// MountReply tells what was mounted.
type MountReply struct {
	Digest string `json:"digest"`
	Layers int    `json:"layers"`
	Files  int    `json:"files"`
	// Size is the sum of the devices' sizes.
	Size  int64    `json:"size"`
	Notes []string `json:"notes,omitempty"`
}

// UmountRequest undoes a mount.
type UmountRequest struct {
	// Dir is where it is mounted, absolute.
	Dir string `json:"dir"`
	// Lazy takes the name away at once, and the rest when nobody uses it any more.
	Lazy bool `json:"lazy,omitempty"`
}

// Mounted is one mounted image or manifest.
type Mounted struct {
	Dir   string `json:"dir"`
	Image string `json:"image,omitempty"`
	// Manifest is the path that a manifest had when it was mounted.
	Manifest string `json:"manifest,omitempty"`
	// Digest is that of the image's manifest, or of the manifest's text.
	Digest string `json:"digest"`
	// Leaving: it is unmounted, and still in use by Users, in words.
	Leaving bool           `json:"leaving,omitempty"`
	Users   string         `json:"users,omitempty"`
	Files   int            `json:"files"`
	Layers  []MountedLayer `json:"layers"`
	// Of a manifest's contents, how many have no digest, and how many have one that
	// is checked once all of a file is present and was not yet.
	Unverifiable int `json:"unverifiable,omitempty"`
	Unverified   int `json:"unverified,omitempty"`
	// FailedFiles counts the contents that could not be had when they were last
	// asked for, Failed are the first of them.
	FailedFiles int          `json:"failed_files,omitempty"`
	Failed      []FailedFile `json:"failed,omitempty"`
}

// FailedFile is a file of a mounted manifest that cannot be had.
type FailedFile struct {
	Path string `json:"path"`
	// Source with its secrets hidden.
	Source string `json:"source"`
	Error  string `json:"error"`
}

// MountedLayer is a layer of a mounted image, or a device of a mounted manifest,
// whose Format is "files".
type MountedLayer struct {
	Digest string `json:"digest,omitempty"`
	// Format that its table of contents came from.
	Format string `json:"format"`
	// Why a layer was read whole that has a table of contents of its own.
	Why string `json:"why,omitempty"`
	// Error is why nothing of it can be read, whoever is asked: its index is wrong.
	Error string `json:"error,omitempty"`
	// Object is that of its device; empty: it has no data.
	Object   string `json:"object,omitempty"`
	Size     int64  `json:"size"`
	Present  int64  `json:"present"`
	Verified bool   `json:"verified"`
	Hits     uint64 `json:"hits"`
	Misses   uint64 `json:"misses"`
	Requests uint64 `json:"requests"`
	Fetched  int64  `json:"fetched"`
	// Files counts a layer's files that are not empty, FilesPresent those of
	// which something is present: read, or fetched beside what was.
	Files        int `json:"files,omitempty"`
	FilesPresent int `json:"files_present,omitempty"`
}

// HydrateRequest asks for all data of an attached file.
type HydrateRequest struct {
	File string `json:"file"`
}

// Progress of a hydrate, in bytes.
type Progress struct {
	Present int64 `json:"present"`
	Total   int64 `json:"total"`
}

// Status is the state of an instance.
type Status struct {
	Version   string    `json:"version"`
	Root      string    `json:"root"`
	KeeperPID int       `json:"keeper_pid"`
	WorkerPID int       `json:"worker_pid"`
	Started   time.Time `json:"started"` // of this worker
	// WorkerDeaths counts the workers that have died before this one, LastDeath is
	// when the last one did. A keeper that is systemd does not tell.
	WorkerDeaths int       `json:"worker_deaths,omitempty"`
	LastDeath    time.Time `json:"last_death,omitzero"`
	// Foreground: the instance ends with the command that started it.
	Foreground bool `json:"foreground,omitempty"`
	// Stopping: it was asked to end. Waits says what is in use until then, and by whom.
	Stopping bool       `json:"stopping,omitempty"`
	Waits    []string   `json:"waits,omitempty"`
	Requests Requests   `json:"requests"`
	Attached []Attached `json:"attached"`
	Mounted  []Mounted  `json:"mounted"`
	Bound    []Bound    `json:"bound"`
	// Broken is what was attached or bound before this worker and cannot be
	// served by it: reads of what is missing are denied.
	Broken    []Broken    `json:"broken,omitempty"`
	Unguarded []Unguarded `json:"unguarded,omitempty"`
	// Errors are the last ones that no reader could be told of.
	Errors []string `json:"errors,omitempty"`
}

// StopReply tells what a stop waits for.
type StopReply struct {
	// Waits says what is in use, and by whom; empty: the instance ends now.
	Waits []string `json:"waits,omitempty"`
}

// Requests counts misses since the worker started.
type Requests struct {
	Pending   uint64 `json:"pending"`
	Filled    uint64 `json:"filled"`
	Failed    uint64 `json:"failed"`
	Expired   uint64 `json:"expired"`
	Flushed   uint64 `json:"flushed"`
	Coalesced uint64 `json:"coalesced"`
	// Latency of misses, nanoseconds.
	P50 time.Duration `json:"miss_latency_p50_ns"`
	P99 time.Duration `json:"miss_latency_p99_ns"`
}

// Attached is one attached file.
type Attached struct {
	File   string `json:"file"`
	Object string `json:"object"`
	// Source with its secrets hidden.
	Source string `json:"source"`
	// Ranges is false where the source can be read only in order.
	Ranges   bool  `json:"ranges"`
	Size     int64 `json:"size"`
	Present  int64 `json:"present"`
	Complete bool  `json:"complete"`
	// Leaving: it is detached, and still in use by Users, in words.
	Leaving bool   `json:"leaving,omitempty"`
	Users   string `json:"users,omitempty"`
	// Verified is "yes", "pending" (a digest is known and checked once
	// complete) or "unverifiable" (no digest is known).
	Verified string `json:"verified"`
	Hits     uint64 `json:"hits"`
	Misses   uint64 `json:"misses"`
	// Requests made to the source since the worker started, bytes fetched
	// from it, and the time from a request to its first byte, nanoseconds.
	Requests  uint64        `json:"requests"`
	Fetched   int64         `json:"fetched"`
	SourceP50 time.Duration `json:"source_latency_p50_ns"`
	SourceP99 time.Duration `json:"source_latency_p99_ns"`
	// Error says why no more is fetched, if that is so.
	Error string `json:"error,omitempty"`
}

// Bound is one bound directory.
type Bound struct {
	Dir     string `json:"dir"`
	Devnode string `json:"devnode"`
	Files   int    `json:"files"`
	Size    int64  `json:"size"`
	Present int64  `json:"present"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
	// DaemonPID is the connected daemon, 0 if none is.
	DaemonPID int    `json:"daemon_pid"`
	Pending   uint64 `json:"pending"`
}

// Broken is one attached file or bound directory that cannot be served.
type Broken struct {
	Path string `json:"path"`
	// Kind is "attach", "bind" or "mount".
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
	// Leaving: it is taken away, and still in use by Users, in words.
	Leaving bool   `json:"leaving,omitempty"`
	Users   string `json:"users,omitempty"`
}

// Unguarded is a time in which attached files could be read and nobody stopped
// reads of holes: readers may have seen zeros.
type Unguarded struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Files []string  `json:"files"`
	// Users are those who had one of the files open at its end, in words.
	Users []string `json:"users,omitempty"`
}
