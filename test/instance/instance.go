package instance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

// Instance is a lacuna with a cache root of its own. A test sets the fields that
// say so before it starts something.
type Instance struct {
	// Dir holds everything of it, Bin is its binary, Root its cache.
	Dir, Bin, Root string
	// Config is its configuration file, or empty.
	Config string
	// Extra are flags besides. Deaf: its log goes where its output does.
	Extra []string
	Deaf  bool
	// Terminal controls it, and is its standard input; nil: none.
	Terminal *os.File
	// Keeper is the process that was started first, nil before; Ended is closed
	// when it has ended.
	Keeper *exec.Cmd
	Ended  chan struct{}
	// Log is what its processes have logged.
	Log LogFile

	t *testing.T
}

// LogFile is the log of all processes of an instance. It is a file, and not a
// pipe to the test, because they may outlive the process that was started first.
type LogFile string

// String is what it has.
func (f LogFile) String() string {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail is its last lines.
func (f LogFile) Tail(lines int) string {
	all := strings.Split(f.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// NeedKernel skips the test where the kernel cannot stop reads.
func NeedKernel(t *testing.T) {
	t.Helper()
	featurestest.NeedRoot(t)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(place.dir))
	featurestest.SkipUnless(t, p.HaveMountAPI())
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(place.dir))
}

// New makes the directories; nothing runs yet. config is TOML.
func New(t *testing.T, config string) *Instance {
	t.Helper()
	NeedKernel(t)
	dir, err := os.MkdirTemp(place.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	i := &Instance{t: t, Dir: dir, Bin: filepath.Join(dir, "lacuna"), Root: filepath.Join(dir, "cache"), Log: LogFile(filepath.Join(dir, "log"))}
	t.Cleanup(i.cleanUp)
	if err := os.Link(place.binary, i.Bin); err != nil {
		t.Fatal(err)
	}
	if config != "" {
		i.Config = filepath.Join(dir, "config.toml")
		if err := os.WriteFile(i.Config, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// For is the instance for a subtest, whose failures are its own.
func (i *Instance) For(t *testing.T) *Instance {
	other := *i
	other.t = t
	return &other
}

// cleanUp ends everything, whatever has happened. What a passing test has left
// is a failure.
func (i *Instance) cleanUp() {
	if i.Keeper != nil && !i.t.Failed() {
		select {
		case <-i.Ended:
		default:
			i.Stop()
		}
	}
	if err := Sweep(i.Dir); err != nil && !i.t.Failed() {
		i.t.Errorf("left behind: %v", err)
	}
	if i.Keeper != nil {
		select {
		case <-i.Ended:
		case <-time.After(time.Minute):
			i.t.Fatalf("the first keeper, process %d, does not end", i.Keeper.Process.Pid)
		}
	}
	if i.t.Failed() {
		ended := "was not started"
		if i.Keeper != nil {
			ended = i.Keeper.ProcessState.String()
		}
		i.t.Logf("the first keeper: %s; log of the instance:\n%s", ended, i.Log.Tail(60))
	}
	if err := os.RemoveAll(i.Dir); err != nil {
		i.t.Error(err)
	}
}

// Command is the binary with the instance's flags.
func (i *Instance) Command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{"--root", i.Root, "--log-format", "json"}
	if i.Config != "" {
		flags = append(flags, "--config", i.Config)
	}
	return exec.CommandContext(ctx, i.Bin, append(append(flags, i.Extra...), args...)...)
}

// Start runs args as the keeper process of the instance. Its standard output
// can be read from out.
func (i *Instance) Start(args ...string) (out io.ReadCloser) {
	i.t.Helper()
	return i.StartCommand(i.Command(context.Background(), args...))
}

// StartCommand is Start for a command of the test's own, which becomes the keeper.
func (i *Instance) StartCommand(cmd *exec.Cmd) (out io.ReadCloser) {
	i.t.Helper()
	log, err := os.OpenFile(string(i.Log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		i.t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			i.t.Error(err)
		}
	})
	cmd.Stdout, cmd.Stderr = w, log
	if i.Deaf {
		cmd.Stderr = w
	}
	if i.Terminal != nil {
		cmd.Stdin = i.Terminal
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	started := cmd.Start()
	if err := errors.Join(started, w.Close(), log.Close()); started != nil {
		i.t.Fatal(err)
	} else if err != nil {
		i.t.Error(err)
	}
	ended := make(chan struct{})
	i.Keeper, i.Ended = cmd, ended
	go func() {
		defer close(ended)
		var exit *exec.ExitError // the state says how it ended
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			i.t.Errorf("wait for the keeper: %v", err)
		}
	}()
	return r
}

// StartDaemon runs `lacuna daemon` and returns when it answers.
func (i *Instance) StartDaemon() {
	i.t.Helper()
	i.Start("daemon")
	i.WaitReady()
}

// WaitReady returns when the instance answers.
func (i *Instance) WaitReady() {
	i.t.Helper()
	Eventually(i.t, 30*time.Second, func() error {
		select {
		case <-i.Ended:
			i.t.Fatalf("it ended with %v:\n%s", i.Keeper.ProcessState, i.Log.String())
		default:
		}
		_, err := i.TryStatus()
		return err
	})
}

// StartForeground runs a verb in the foreground and returns when it is ready.
func (i *Instance) StartForeground(args ...string) {
	i.t.Helper()
	out := i.Start(args...)
	kill := func() {
		if err := i.Keeper.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			i.t.Errorf("kill the keeper: %v", err)
		}
	}
	late := time.AfterFunc(time.Minute, kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	late.Stop()
	if line != "ready\n" {
		if err == nil { // it runs on
			kill()
		}
		<-i.Ended
		i.t.Fatalf("%v said %q, %v:\n%s", args, line, err, i.Log.String())
	}
}

// Lacuna runs a verb that must succeed.
// Where another test has a mount namespace of its own, with copies of all mounts, it
// waits until that is gone.
func (i *Instance) Lacuna(args ...string) (out string) {
	i.t.Helper()
	Eventually(i.t, 30*time.Second, func() (err error) {
		if out, err = i.Try(args...); err != nil && !strings.Contains(err.Error(), "in a mount namespace of its own") {
			i.t.Fatal(err)
		}
		return err
	})
	return out
}

// Try runs a verb. The error has what it wrote to standard error.
func (i *Instance) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := i.Command(ctx, args...)
	var out, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &told
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lacuna %s: %w: %s", strings.Join(args, " "), err, told.String())
	}
	return out.String(), nil
}

// ExitOf is the exit status that err of try tells of.
func ExitOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TryStatus asks for the status.
func (i *Instance) TryStatus() (control.Status, error) {
	var s control.Status
	out, err := i.Try("status", "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// Status is the status, which it must tell.
func (i *Instance) Status() control.Status {
	i.t.Helper()
	s, err := i.TryStatus()
	if err != nil {
		i.t.Fatal(err)
	}
	return s
}

// Worker is the worker that runs below the keeper now, 0: none. A keeper that
// upgrades has another child for a moment.
func (i *Instance) Worker() int { return WorkerOf(i.Keeper.Process.Pid) }

// WorkerOf is Worker for any keeper.
func WorkerOf(keeper int) int {
	for _, pid := range ChildrenOf(keeper) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasSuffix(string(line), "\x00worker\x00") {
			return pid
		}
	}
	return 0
}

// WaitWorker waits for a worker other than the given one.
func (i *Instance) WaitWorker(other int) int {
	i.t.Helper()
	pid := 0
	Eventually(i.t, 30*time.Second, func() error {
		if pid = i.Worker(); pid == 0 || pid == other {
			return fmt.Errorf("no worker but %d", other)
		}
		return nil
	})
	return pid
}

// Stop asks the instance to stop and wants a clean end.
func (i *Instance) Stop() {
	i.t.Helper()
	i.Signal(syscall.SIGTERM)
	i.WaitEnd(0)
}

// Signal sends a signal to the keeper.
func (i *Instance) Signal(sig os.Signal) {
	i.t.Helper()
	if err := i.Keeper.Process.Signal(sig); err != nil {
		i.t.Fatalf("signal the keeper: %v", err)
	}
}

// WaitEnd waits for the end of the keeper process.
func (i *Instance) WaitEnd(exit int) {
	i.t.Helper()
	select {
	case <-i.Ended:
	case <-time.After(60 * time.Second):
		i.t.Fatal("the instance does not end")
	}
	if got := i.Keeper.ProcessState.ExitCode(); got != exit {
		i.t.Fatalf("it ended with %v, not with %d", i.Keeper.ProcessState, exit)
	}
}

// Check proves the cache against the source.
func (i *Instance) Check() {
	i.t.Helper()
	out := i.Lacuna("check", "--verify")
	i.t.Logf("check --verify: %s", strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
}

// Kill kills processes of the instance at one blow.
func (i *Instance) Kill(pids ...int) {
	i.t.Helper()
	// All stop before one dies, so that none can answer to another's death.
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				i.t.Fatalf("kill process %d: %v", pid, err)
			}
		}
	}
	Eventually(i.t, 10*time.Second, func() error {
		for _, pid := range pids {
			if IsRunning(pid) {
				return fmt.Errorf("process %d runs", pid)
			}
		}
		return nil
	})
}
