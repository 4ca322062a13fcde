package e2e

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

// instance is a lacuna with a cache root of its own.
type instance struct {
	t      *testing.T
	dir    string // everything of it lies here
	bin    string // its binary
	root   string
	config string // file, or empty

	deaf  bool     // its log goes where its output does
	extra []string // flags besides

	terminal *os.File // controls it, and is its standard input; nil: none

	keeper *exec.Cmd     // nil before start
	ended  chan struct{} // closed when keeper has ended
	log    logFile
}

// logFile is the log of all processes of an instance. It is a file, and not a
// pipe to the test, because they may outlive the process that was started first.
type logFile string

func (f logFile) String() string {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// output is what a process has written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// needKernel skips the test where the kernel cannot stop reads.
func needKernel(t *testing.T) {
	t.Helper()
	featurestest.NeedRoot(t)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(place.dir))
	featurestest.SkipUnless(t, p.HaveMountAPI())
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(place.dir))
}

// newInstance makes the directories; nothing runs yet. config is TOML.
func newInstance(t *testing.T, config string) *instance {
	t.Helper()
	needKernel(t)
	dir, err := os.MkdirTemp(place.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{t: t, dir: dir, bin: filepath.Join(dir, "lacuna"), root: filepath.Join(dir, "cache"), log: logFile(filepath.Join(dir, "log"))}
	t.Cleanup(i.cleanUp)
	if err := os.Link(place.binary, i.bin); err != nil {
		t.Fatal(err)
	}
	if config != "" {
		i.config = filepath.Join(dir, "config.toml")
		if err := os.WriteFile(i.config, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// cleanUp ends everything, whatever has happened. What a passing test has left
// is a failure.
func (i *instance) cleanUp() {
	if i.keeper != nil && !i.t.Failed() {
		select {
		case <-i.ended:
		default:
			i.stop()
		}
	}
	if err := sweep(i.dir); err != nil && !i.t.Failed() {
		i.t.Errorf("left behind: %v", err)
	}
	if i.keeper != nil {
		<-i.ended
	}
	if i.t.Failed() {
		ended := "was not started"
		if i.keeper != nil {
			ended = i.keeper.ProcessState.String()
		}
		i.t.Logf("the first keeper: %s; log of the instance:\n%s", ended, tail(i.log.String(), 60))
	}
	if err := os.RemoveAll(i.dir); err != nil {
		i.t.Error(err)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// command is the binary with the instance's flags.
func (i *instance) command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{"--root", i.root, "--log-format", "json"}
	if i.config != "" {
		flags = append(flags, "--config", i.config)
	}
	return exec.CommandContext(ctx, i.bin, append(append(flags, i.extra...), args...)...)
}

// start runs args as the keeper process of the instance. Its standard output
// can be read from out.
func (i *instance) start(args ...string) (out io.ReadCloser) {
	i.t.Helper()
	i.keeper = i.command(context.Background(), args...)
	log, err := os.OpenFile(string(i.log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		i.t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { _ = r.Close() })
	i.keeper.Stdout, i.keeper.Stderr = w, log
	if i.deaf {
		i.keeper.Stderr = w
	}
	if i.terminal != nil {
		i.keeper.Stdin = i.terminal
		i.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	if err := errors.Join(i.keeper.Start(), w.Close(), log.Close()); err != nil {
		i.t.Fatal(err)
	}
	i.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // the state says how it ended
	}(i.keeper, i.ended)
	return r
}

// startDaemon runs `lacuna daemon` and returns when it answers.
func (i *instance) startDaemon() {
	i.t.Helper()
	i.start("daemon")
	i.waitReady()
}

func (i *instance) waitReady() {
	i.t.Helper()
	eventually(i.t, 30*time.Second, func() error {
		select {
		case <-i.ended:
			i.t.Fatalf("it ended with %v:\n%s", i.keeper.ProcessState, i.log.String())
		default:
		}
		_, err := i.tryStatus()
		return err
	})
}

// startForeground runs a verb in the foreground and returns when it is ready.
func (i *instance) startForeground(args ...string) {
	i.t.Helper()
	out := i.start(args...)
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		<-i.ended
		i.t.Fatalf("%v said %q, %v:\n%s", args, line, err, i.log.String())
	}
}

// lacuna runs a verb that must succeed.
// Where another test has a mount namespace of its own, with copies of all mounts, it
// waits until that is gone.
func (i *instance) lacuna(args ...string) (out string) {
	i.t.Helper()
	eventually(i.t, 30*time.Second, func() (err error) {
		if out, err = i.try(args...); err != nil && !strings.Contains(err.Error(), "in a mount namespace of its own") {
			i.t.Fatal(err)
		}
		return err
	})
	return out
}

// try runs a verb. The error has what it wrote to standard error.
func (i *instance) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := i.command(ctx, args...)
	var out, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &told
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("lacuna %s: %w: %s", strings.Join(args, " "), err, told.String())
	}
	return out.String(), nil
}

// exitOf is the exit status that err of try tells of.
func exitOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func (i *instance) tryStatus() (control.Status, error) {
	var s control.Status
	out, err := i.try("status", "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

func (i *instance) status() control.Status {
	i.t.Helper()
	s, err := i.tryStatus()
	if err != nil {
		i.t.Fatal(err)
	}
	return s
}

// worker is the worker that runs below the keeper now, 0: none. A keeper that
// upgrades has another child for a moment.
func (i *instance) worker() int { return workerOf(i.keeper.Process.Pid) }

func workerOf(keeper int) int {
	for _, pid := range childrenOf(keeper) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasSuffix(string(line), "\x00worker\x00") {
			return pid
		}
	}
	return 0
}

// waitWorker waits for a worker other than the given one.
func (i *instance) waitWorker(other int) int {
	i.t.Helper()
	pid := 0
	eventually(i.t, 30*time.Second, func() error {
		if pid = i.worker(); pid == 0 || pid == other {
			return fmt.Errorf("no worker but %d", other)
		}
		return nil
	})
	return pid
}

// stop asks the instance to stop and wants a clean end.
func (i *instance) stop() {
	i.t.Helper()
	i.signal(syscall.SIGTERM)
	i.waitEnd(0)
}

func (i *instance) signal(sig os.Signal) {
	i.t.Helper()
	if err := i.keeper.Process.Signal(sig); err != nil {
		i.t.Fatalf("signal the keeper: %v", err)
	}
}

// waitEnd waits for the end of the keeper process.
func (i *instance) waitEnd(exit int) {
	i.t.Helper()
	select {
	case <-i.ended:
	case <-time.After(60 * time.Second):
		i.t.Fatal("the instance does not end")
	}
	if got := i.keeper.ProcessState.ExitCode(); got != exit {
		i.t.Fatalf("it ended with %v, not with %d", i.keeper.ProcessState, exit)
	}
}

// check proves the cache against the source.
func (i *instance) check() {
	i.t.Helper()
	out := i.lacuna("check", "--verify")
	i.t.Logf("check --verify: %s", strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
}
