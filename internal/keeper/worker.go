package keeper

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// worker is a running worker, or one that has ended and is not yet cleared.
type worker struct {
	pid     int
	process *sys.FD // pidfd
	child   bool    // of this process, which then reaps it
	started time.Time
	dead    chan struct{} // closed when it has ended and, as a child, is reaped

	// Valid once dead is closed. known: the exit status is.
	known  bool
	status syscall.WaitStatus
	err    error // of the watching itself
}

// watchWorker waits for the end of the process in a goroutine of its own.
func watchWorker(pid int, process *sys.FD, child bool, started time.Time) *worker {
	w := &worker{pid: pid, process: process, child: child, started: started, dead: make(chan struct{})}
	go w.watch()
	return w
}

func (w *worker) watch() {
	defer close(w.dead)
	if _, err := sys.WaitReadable(w.process, -1); err != nil {
		// Unseen it must not go on: there is one worker at a time.
		w.err = errors.Join(err, w.signal(syscall.SIGKILL))
	}
	if !w.child {
		return
	}
	for {
		_, err := syscall.Wait4(w.pid, &w.status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		// ECHILD: the program before an upgrade has reaped it.
		w.known = err == nil
		return
	}
}

func (w *worker) signal(sig syscall.Signal) error {
	err := sys.SignalProcess(w.process, sig)
	if errors.Is(err, syscall.ESRCH) {
		return nil // it has ended, and dead tells
	}
	return err
}

// outcome says how the ended worker ended, and the exit status to pass on. The
// end of a process that is not our child counts as 0 where it was announced.
func (w *worker) outcome(announced bool) (status int, text string) {
	switch {
	case !w.known && announced:
		return 0, "ended"
	case !w.known:
		return 1, "ended, exit status not known"
	case w.status.Signaled():
		return 128 + int(w.status.Signal()), fmt.Sprintf("killed by signal %d (%v)", w.status.Signal(), w.status.Signal())
	default:
		return w.status.ExitStatus(), fmt.Sprintf("exit status %d", w.status.ExitStatus())
	}
}

// startLocked starts a worker with everything held at descriptors 3 and up.
// The caller holds in.mu, so that no message of it is read before its pid is known.
func (in *inbox) startLocked() (*worker, error) {
	o := in.opt
	files := []uintptr{0, 1, 2}
	for _, e := range in.held.entries {
		files = append(files, uintptr(e.fd.Int()))
	}
	env := append(cleanEnv(o.Env),
		EnvSocket+"="+in.address,
		EnvKeeperPID+"="+strconv.Itoa(os.Getpid()))
	if in.life.deaths.Count > 0 {
		env = append(env, EnvDeaths+"="+in.life.deaths.text())
	}
	if n := len(in.held.entries); n > 0 {
		env = append(env, EnvFDs+"="+strconv.Itoa(n), EnvFDNames+"="+in.held.fdNames())
	}
	argv := append([]string{o.Path}, o.WorkerArgs...)
	pid, err := syscall.ForkExec(o.Path, argv, &syscall.ProcAttr{Env: env, Files: files})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Path, err)
	}
	process, err := sys.OpenProcess(pid) // nobody else reaps it, so the pid is its own
	if err != nil {
		return nil, errors.Join(err, killChild(pid))
	}
	in.pid = pid
	in.life.ready, in.life.stopping = false, false
	return watchWorker(pid, process, true, o.clock.now()), nil
}

// killChild ends and reaps a child that cannot be watched.
func killChild(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		_, err := syscall.Wait4(pid, nil, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reap process %d: %w", pid, err)
		}
		return nil
	}
}

// cleanEnv is env without this package's variables.
func cleanEnv(env []string) []string {
	var out []string
	for _, line := range env {
		key, _, _ := strings.Cut(line, "=")
		switch key {
		case EnvSocket, EnvFDs, EnvFDNames, EnvPID, EnvKeeperPID, EnvDeaths, EnvState:
			continue
		}
		out = append(out, line)
	}
	return out
}
