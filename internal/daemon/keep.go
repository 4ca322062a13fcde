package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/ondemand/fanotify"
	"github.com/lacunafs/lacuna/internal/sys"
)

// KeepOptions are what RunKeeper needs besides Settings.
type KeepOptions struct {
	// Env is the environment.
	Env []string
	// State is the value of keeper.EnvState.
	State string
	// Ready is written "ready\n" to when reads may begin; nil: nobody waits.
	Ready io.Writer
}

// RunKeeper is a keeper's life: it starts a worker for s and restarts it until
// the end, and returns the exit status for the process.
func RunKeeper(ctx context.Context, s Settings, o KeepOptions, log *slog.Logger) (int, error) {
	encoded, err := json.Marshal(s)
	if err != nil {
		return 1, fmt.Errorf("encode settings: %w", err)
	}
	address := ""
	if o.State == "" { // or it is in the state, or this is but a trial
		// What a shell has left open would be in use for as long as this runs, such
		// as a file of a mount that is to be taken away.
		if err := sys.CloseInherited(); err != nil {
			return 1, err
		}
		address = notifyAddress()
	}
	return keeper.Run(ctx, keeper.Options{
		WorkerArgs: WorkerArgs(), KeeperArgs: KeeperArgs(), State: o.State,
		Env:     append(slices.Clone(o.Env), EnvSettings+"="+string(encoded)),
		Address: address,
		HungUp:  hungUp(s.Foreground),
		OnReady: func() {
			if o.Ready == nil {
				return
			}
			if _, err := io.WriteString(o.Ready, "ready\n"); err != nil {
				log.Error("telling that reads may begin", "err", err)
			}
		},
		OnEvent:    (&eventLog{log: log}).tell,
		Unattended: unattended,
		LastStop: func(held keeper.Held) error {
			if len(held[fdLock]) == 0 {
				return nil // the root never was ours: what is mounted there is another instance's
			}
			return Leftovers(s.Config.Root, held)
		},
	})
}

// hungUp tells whether the terminal of a command in the foreground is gone.
func hungUp(foreground bool) func() bool {
	var terminals []int
	for fd := range 3 {
		if foreground && sys.IsTerminal(fd) {
			terminals = append(terminals, fd)
		}
	}
	return func() bool {
		return slices.ContainsFunc(terminals, func(fd int) bool { return !sys.IsTerminal(fd) })
	}
}

// runDir is where keepers have their notify sockets.
const runDir = "/run/lacuna"

// notifyAddress is a socket that only this user may write to; empty, for an
// abstract one that the keeper chooses, where the directory cannot be made.
func notifyAddress() string {
	if os.Geteuid() != 0 || os.MkdirAll(runDir, 0o755) != nil {
		return "" // root's directory lets nobody else in
	}
	// Sockets of keepers that were killed answer nobody.
	stale, err := filepath.Glob(filepath.Join(runDir, "keeper-*.sock"))
	if err != nil {
		return ""
	}
	for _, path := range stale {
		st, err := os.Lstat(path)
		if err != nil || time.Since(st.ModTime()) < time.Minute {
			continue // one that is being bound has its file first, and refuses too
		}
		conn, err := net.Dial("unixgram", path)
		if err == nil {
			err = conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			err = os.Remove(path)
		}
		if err != nil {
			continue // somebody else's affair
		}
	}
	return filepath.Join(runDir, "keeper-"+rand.Text()+".sock")
}

// unattended denies reads while no worker runs.
func unattended(ctx context.Context, held keeper.Held) error {
	groups, flights := held[fdGroup], held[fdInflight]
	if len(groups) == 0 || len(flights) == 0 {
		<-ctx.Done() // the worker died before it had anything
		return nil
	}
	fd, err := flights[0].Dup()
	if err != nil {
		return err
	}
	flight, err := fanotify.OpenInflight(fd)
	if err != nil {
		return errors.Join(err, fd.Close())
	}
	for {
		// It must not end before ctx does: nobody else answers.
		err = fanotify.DenyAll(ctx, groups[0], flight)
		if ctx.Err() != nil {
			return errors.Join(err, flight.Close())
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// eventLog tells of what happens to the keeper.
type eventLog struct {
	log *slog.Logger

	mu   sync.Mutex      // guards told
	told map[string]bool // what was told of a last stop, which is tried again each second
}

// isKnown tells whether nothing in an error of a last stop is new. Who uses something
// changes each second; what stands does not.
func (l *eventLog) isKnown(err error) bool {
	what := []string{err.Error()}
	var standing *standingError
	if errors.As(err, &standing) {
		what = standing.paths
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told == nil {
		l.told = make(map[string]bool)
	}
	known := true
	for _, w := range what {
		known = known && l.told[w]
		l.told[w] = true
	}
	return known
}

// tell tells of e, unless it was told before.
func (l *eventLog) tell(e keeper.Event) {
	if e.What == keeper.LastStopError && l.isKnown(e.Err) {
		return
	}
	level := slog.LevelInfo
	switch e.What {
	case keeper.WorkerStarted, keeper.Status:
		level = slog.LevelDebug
	case keeper.StartFailed, keeper.Refused, keeper.SocketFailed, keeper.UnattendedError, keeper.LastStopError, keeper.UpgradeRefused, keeper.Killed:
		level = slog.LevelError
	}
	var args []any
	if e.PID != 0 {
		args = append(args, "pid", e.PID)
	}
	if e.Text != "" {
		args = append(args, "text", e.Text)
	}
	if e.Wait > 0 {
		args = append(args, "wait", e.Wait)
	}
	if e.Err != nil {
		args = append(args, "err", e.Err)
	}
	l.log.Log(context.Background(), level, e.What, args...)
}
