// Package features finds out what the running kernel can do, by trying it.
//
// A probe has three answers. nil: the kernel has the feature, it was just
// used. An error that wraps ErrNotSupported: the kernel does not have it, for
// this file system where one is named. Any other error: could not tell, for
// want of a capability (*PrivilegeError), of space, of descriptors. The first
// two are sure and are kept in the Prober; the third is asked again each time.
//
// Nothing here compares versions: distributions add features to old kernels
// and switch them off in new ones. A version only words a message.
//
// Probes leave nothing behind, and disturb no one: they use files of their own.
package features

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// ErrNotSupported is in the chain of every sure no.
var ErrNotSupported = errors.New("not supported by this kernel")

// UnsupportedError is a sure no. It wraps ErrNotSupported.
type UnsupportedError struct {
	// Feature is the name of what is missing, as List has it.
	Feature string
	// Filesystem is the type of the file system that lacks it, as
	// /proc/filesystems names it; empty where the kernel as a whole does.
	Filesystem string
	// Needs says what has it: kernels and their options, or file systems.
	Needs string
}

// Error says what is missing, and what would have it.
func (e *UnsupportedError) Error() string {
	where := ""
	if e.Filesystem != "" {
		where = " on " + e.Filesystem
	}
	return fmt.Sprintf("%s%s: %v (needs %s)", e.Feature, where, ErrNotSupported, e.Needs)
}

// Unwrap makes errors.Is find ErrNotSupported.
func (e *UnsupportedError) Unwrap() error { return ErrNotSupported }

// PrivilegeError is "could not tell": the kernel lets only a privileged
// process try.
type PrivilegeError struct {
	// Feature is the name of what was tried, as List has it.
	Feature string
	// Capability is the one that the attempt needs, in the initial user namespace.
	Capability string
	// Err is what the kernel answered.
	Err error
}

// Error names the feature and the capability.
func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("%s: could not tell without %s: %v", e.Feature, e.Capability, e.Err)
}

// Unwrap is what the kernel answered.
func (e *PrivilegeError) Unwrap() error { return e.Err }

// Names of features, in messages and in List.
const (
	FanotifyPreContent = "fanotify-pre-content"
	MountAPI           = "mount-api"
	ErofsFileMounts    = "erofs-file-mounts"
)

// Prober probes, and remembers what is sure. The zero value is ready; all
// methods may be called concurrently.
type Prober struct {
	mu   sync.Mutex
	sure map[key]error
}

// key is what an answer holds for: a feature, on the device of a file system
// where that matters.
type key struct {
	feature string
	dev     uint64
}

// once returns the sure answer for k, from probe if there is none yet. Two
// callers may probe at the same time; both get a true answer.
func (p *Prober) once(k key, probe func() error) error {
	p.mu.Lock()
	err, ok := p.sure[k]
	p.mu.Unlock()
	if ok {
		return err
	}
	err = probe()
	if err == nil || errors.Is(err, ErrNotSupported) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.sure == nil {
			p.sure = map[key]error{}
		}
		p.sure[k] = err
	}
	return err
}

// Answer is what a probe found out.
type Answer string

// The answers of a probe.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

// AnswerOf is the answer that a probe's error stands for.
func AnswerOf(err error) Answer {
	switch {
	case err == nil:
		return Yes
	case errors.Is(err, ErrNotSupported):
		return No
	}
	return Unknown
}

// Feature is one line of List.
type Feature struct {
	Name   string `json:"name"`
	Answer Answer `json:"answer"`
	// For is what Lacuna does with it.
	For string `json:"for"`
	// Reason is the error of an answer other than Yes.
	Reason string `json:"reason,omitempty"`
	// Err is the probe's error.
	Err error `json:"-"`
}

// List probes every feature, for objects that lie in dir or will once it exists.
func (p *Prober) List(dir string) []Feature {
	list := []Feature{
		{
			Name: FanotifyPreContent, For: "files below " + dir + " that fill themselves when read",
			Err: p.HaveFanotifyPreContent(dir),
		},
		{
			Name: MountAPI, For: "showing a file of a filesystem over a file of the user's",
			Err: p.HaveMountAPI(),
		},
		{
			Name: ErofsFileMounts, For: "images and attached files as EROFS filesystems, made of files below " + dir,
			Err: p.HaveErofsFileMounts(dir),
		},
	}
	for i := range list {
		f := &list[i]
		f.Answer = AnswerOf(f.Err)
		if f.Err != nil {
			f.Reason = f.Err.Error()
		}
	}
	return list
}

// Release is the running kernel's version, for messages; "unknown" where
// /proc does not tell.
func Release() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
