// Package daemon puts an instance of Lacuna together: it chooses the front end
// from probes, wires sources, cache, fetching, the request table and the
// control socket, hands over to a successor, and stops in the order that never
// shows a reader a hole.
//
// An instance is two processes. The keeper (package keeper, or systemd) holds
// the fanotify group, the in-flight table, the lock of the cache root and the
// sockets. The worker does everything; when it dies, the next one finds the
// descriptors, the records of what is served under the root, and the mounts,
// and goes on. A crash, an upgrade and a restart are one path.
//
// Locks: Instance.mu guards what is served and is held over local work, never
// while a source is asked. The request table, the front end and the fetcher
// have their own and never call back into the Instance with theirs held, except
// for Instance.fillers and Instance.origins, which are lock-free maps.
package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
)

// Settings say what a worker is to do. They travel from keeper to worker as JSON.
type Settings struct {
	Config  config.Config `json:"config"`
	Version string        `json:"version"`
	// Foreground: the instance serves only what Attach, Bind or Mount says at
	// start, and ends when its keeper does.
	Foreground bool                   `json:"foreground,omitempty"`
	Attach     *control.AttachRequest `json:"attach,omitempty"`
	Bind       *control.BindRequest   `json:"bind,omitempty"`
	Mount      *control.MountRequest  `json:"mount,omitempty"`
	// Systemd: systemd is the keeper.
	Systemd bool `json:"systemd,omitempty"`
	// Proxy chooses a proxy for a request to a source; nil: none. It is for
	// this process only.
	Proxy func(*http.Request) (*url.URL, error) `json:"-"`
}

// EnvSettings is the environment variable in which a keeper hands Settings to
// its worker and to its successor: unlike arguments it is not for all to see.
const EnvSettings = "LACUNA_SETTINGS"

// WorkerArgs are the arguments that make this program a worker.
func WorkerArgs() []string { return []string{"worker"} }

// KeeperArgs are the arguments that make this program a keeper that takes over.
func KeeperArgs() []string { return []string{"keeper"} }

// ReadSettings decodes the value of EnvSettings.
func ReadSettings(value string) (Settings, error) {
	var s Settings
	if err := json.Unmarshal([]byte(value), &s); err != nil {
		return s, fmt.Errorf("read %s: %w", EnvSettings, err)
	}
	return s, nil
}

// Names of descriptors in the keeper.
const (
	fdGroup    = "fanotify-group"
	fdInflight = "inflight"
	fdLock     = "root-lock"
	fdControl  = "control-socket"
	fdStop     = "stop" // there where a command has asked for the end
)

// descriptors is the limit of open files of a worker, and with it the number of
// events that can be open: one descriptor each.
const descriptors = 1 << 17

// reserved descriptors are neither for events nor for objects: connections, files
// that are open for a moment.
const reserved = 1 << 10
