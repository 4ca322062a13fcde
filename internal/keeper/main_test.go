package keeper

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
	"go.uber.org/goleak"
)

// The test binary is keeper and worker as well: with testRole set it is a
// keeper, and a worker where a keeper, or systemd, has started it.
const (
	testRole    = "LACUNA_TEST_KEEPER" // 1: keeper with a fast clock
	testWorker  = "LACUNA_TEST_WORKER" // what the worker does, see workerMain
	testAddress = "LACUNA_TEST_ADDRESS"
	testStop    = "LACUNA_TEST_STOP_FAILS" // how often LastStop fails
	testHalt    = "LACUNA_TEST_HALT"       // a keeper that takes over stops before it begins
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(testRole) == "":
		goleak.VerifyTestMain(m)
	case os.Getenv(EnvSocket) != "":
		os.Exit(workerMain())
	default:
		os.Exit(keeperMain())
	}
}

// say prints one line in one write, so that lines of two processes never mix.
func say(format string, args ...any) {
	if _, err := fmt.Printf(format+"\n", args...); err != nil {
		os.Exit(99)
	}
}

func keeperMain() int {
	if os.Getenv(testHalt) != "" && os.Getenv(EnvState) != "" {
		if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
			say("keeper: %v", err)
			return 1
		}
	}
	fails, _ := strconv.Atoi(os.Getenv(testStop))
	exit, err := Run(context.Background(), Options{
		Env:             os.Environ(),
		State:           os.Getenv(EnvState),
		Address:         os.Getenv(testAddress),
		StopTimeout:     500 * time.Second, // on the fast clock: half a second
		HandOverTimeout: 500 * time.Second,
		Limit:           8,
		OnReady:         func() { say("first ready") },
		OnEvent: func(e Event) {
			say("event %s: pid=%d wait=%v text=%q err=%v", e.What, e.PID, e.Wait, e.Text, e.Err)
		},
		Unattended: func(ctx context.Context, held Held) error {
			say("unattended %s", names(held))
			<-ctx.Done()
			say("attended")
			return ctx.Err()
		},
		LastStop: func(held Held) error {
			say("last stop %s", names(held))
			if fails--; fails >= 0 {
				return errors.New("still mounted")
			}
			return nil
		},
		clock: clock{now: time.Now, after: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTimer(d / 1000)
			return t.C, func() { t.Stop() }
		}},
	})
	if os.Getenv(EnvState) != stateTrial {
		say("keeper ends: %d %v", exit, err)
	}
	return exit
}

// names lists what is held and proves that it is open.
func names(held Held) string {
	var out []string
	for name, fds := range held {
		for _, fd := range fds {
			if !sys.IsOpen(fd.Int()) {
				name += "(closed)"
			}
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

const tableMagic = 0x6c6163756e61

// workerMain keeps three things: a memfd with a magic number, a count of
// workers and the inode of the pipe; a pipe with a byte, and an eventfd with 1,
// for each worker.
func workerMain() int {
	what := os.Getenv(testWorker)
	if what == "refuses" {
		return 7
	}
	c, held, err := Inherit(ReadEnvironment(os.Getenv))
	if err == nil {
		err = c.Watch()
	}
	if err != nil {
		say("worker: %v", err)
		return 3
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	if what == "fails" && len(held) > 0 { // not the first one
		return 9
	}
	w := &testProcess{client: c, held: held, what: what}
	if err := w.begin(); err != nil {
		say("worker: %v", err)
		return 3
	}
	say("up pid=%d keeper=%d version=%s address=%s held=%s count=%d", os.Getpid(), c.KeeperPID(),
		version(), os.Getenv(EnvSocket), strings.ReplaceAll(names(held), " ", ","), w.count)
	switch what {
	case "crashes", "fails":
		return 9
	case "suicidal":
		return w.suicide()
	}
	commands := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			commands <- in.Text()
		}
	}()
	started := make(chan error)
	lost := c.Lost()
	for {
		select {
		case sig := <-signals:
			if what == "stubborn" {
				continue
			}
			if sig == syscall.SIGUSR1 {
				say("leaving")
				return 0
			}
			if what == "patient" {
				if err := w.wait(); err != nil {
					say("worker: %v", err)
				}
			}
			if err := errors.Join(c.Stopping(), c.Barrier(context.Background())); err != nil {
				say("worker: %v", err)
			}
			say("bye")
			return 0
		case <-lost:
			lost = nil
			exe, _ := os.Executable()
			go func() { started <- c.StartKeeper(context.Background(), Start{Path: exe, Env: os.Environ()}) }()
		case err := <-started:
			say("new keeper pid=%d err=%v", c.KeeperPID(), err)
			lost = c.Lost()
		case line := <-commands:
			if status := w.command(line); status >= 0 {
				return status
			}
		}
	}
}

type testProcess struct {
	client *Client
	held   Held
	what   string
	count  uint64
}

func (w *testProcess) begin() error {
	unready := w.what == "unready" && len(w.held) > 0 // not the first one
	if len(w.held) == 0 {
		if err := w.create(); err != nil {
			return err
		}
	}
	table, err := sys.MapShared(w.held["table"][0])
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	inode, err := sys.InodeOf(w.held["pipe-r"][0].Int())
	if err != nil {
		return err
	}
	if ne.Uint64(table.Bytes) != tableMagic || ne.Uint64(table.Bytes[16:]) != inode.Ino {
		return errors.New("the table or the pipe is another one")
	}
	w.count = ne.Uint64(table.Bytes[8:]) + 1
	ne.PutUint64(table.Bytes[8:], w.count)
	if _, err := syscall.Write(w.held["pipe-w"][0].Int(), []byte{'x'}); err != nil {
		return err
	}
	if _, err := syscall.Write(w.held["event"][0].Int(), ne.AppendUint64(nil, 1)); err != nil {
		return err
	}
	if unready {
		return table.Close()
	}
	return errors.Join(table.Close(), w.client.Ready(), w.client.Status("up"),
		w.client.Barrier(context.Background()))
}

func (w *testProcess) create() error {
	table, err := sys.Memfd("table", 4096)
	if err != nil {
		return err
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return err
	}
	event, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		return errno
	}
	w.held = Held{
		"table":  {table},
		"pipe-r": {sys.NewFD(pipe[0])},
		"pipe-w": {sys.NewFD(pipe[1])},
		"event":  {sys.NewFD(int(event))},
	}
	inode, err := sys.InodeOf(pipe[0])
	if err != nil {
		return err
	}
	b := binary.NativeEndian.AppendUint64(nil, tableMagic)
	b = binary.NativeEndian.AppendUint64(b, 0)
	b = binary.NativeEndian.AppendUint64(b, inode.Ino)
	if _, err := syscall.Pwrite(table.Int(), b, 0); err != nil {
		return err
	}
	c := w.client
	return errors.Join(c.Push("table", table),
		c.Push("pipe-r", w.held["pipe-r"][0]), c.Push("pipe-w", w.held["pipe-w"][0]),
		c.Push("event", w.held["event"][0]), c.Barrier(context.Background()))
}

// wait takes three times as long to stop as the keeper allows, and says so.
func (w *testProcess) wait() error {
	tick, over := time.NewTicker(100*time.Millisecond), time.After(1500*time.Millisecond)
	defer tick.Stop()
	for {
		if err := w.client.Extend(500 * time.Second); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-over:
			return nil
		}
	}
}

// suicide is what a worker of systemd does: four lives, in which it pushes and
// removes one more descriptor, then a clean end.
func (w *testProcess) suicide() int {
	switch w.count {
	case 3:
		w.command("push extra")
	case 4:
		w.command("remove extra")
	case 5:
		w.command("drain")
		const exitNow = 34 + 24 // SIGRTMIN+24 ends a user instance, systemd(1)
		if err := errors.Join(w.client.Stopping(), syscall.Kill(w.client.KeeperPID(), exitNow)); err != nil {
			say("worker: %v", err)
			return 1
		}
		return 0
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		say("worker: %v", err)
	}
	return 1
}

// command does one line of the test's standard input; -1: go on.
func (w *testProcess) command(line string) int {
	verb, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "exit", "stopping-exit":
		if verb == "stopping-exit" {
			if err := w.client.Stopping(); err != nil {
				say("worker: %v", err)
			}
		}
		n, _ := strconv.Atoi(arg)
		return n
	case "keeper":
		say("keeper pid=%d", w.client.KeeperPID())
	case "drain":
		buf := make([]byte, 4096)
		n, _ := syscall.Read(w.held["pipe-r"][0].Int(), buf)
		k, _ := syscall.Read(w.held["event"][0].Int(), buf[2048:])
		say("drained %d %d", n, binary.NativeEndian.Uint64(buf[2048:])*uint64(k/8))
	case "push":
		fd, err := sys.Memfd(arg, 1)
		if err == nil {
			err = w.client.Push(arg, fd)
		}
		say("pushed %v", errors.Join(err, w.client.Barrier(context.Background())))
	case "push-again":
		// Past the client's own check, to see the keeper's.
		err := w.client.sendLocked(message{push: true, name: "twice"}, w.held["table"][0].Int())
		say("pushed %v", errors.Join(err, w.client.Barrier(context.Background())))
	case "push-and-die":
		fd, err := sys.Memfd(arg, 1)
		if err == nil {
			err = w.client.Push(arg, fd)
		}
		say("dying %v", err)
		return 5
	case "remove":
		say("removed %v", errors.Join(w.client.Remove(arg), w.client.Barrier(context.Background())))
	case "raw":
		err := sys.SendDatagram(os.Getenv(EnvSocket), []byte(strings.ReplaceAll(arg, `\n`, "\n")), nil, 1)
		say("sent %v", errors.Join(err, w.client.Barrier(context.Background())))
	}
	return -1
}

// version is what was written behind the end of this program's file.
func version() string {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err.Error()
	}
	_, v, ok := strings.Cut(string(b[len(b)-16:]), "version=")
	if !ok {
		return "none"
	}
	return v
}

// copyProgram writes this program to path, marked with a version.
func copyProgram(t *testing.T, path, version string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	replaceProgram(t, path, append(b, "version="+version...))
}

func replaceProgram(t *testing.T, path string, content []byte) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), "new")
	if err := os.WriteFile(tmp, content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}
