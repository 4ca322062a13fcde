package keeper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

func TestInheritRefusesWhatDoesNotFit(t *testing.T) {
	for name, env := range map[string]Environment{
		"no count":           {ListenFDs: "x", ListenFDNames: "a"},
		"negative":           {ListenFDs: "-1"},
		"too few names":      {ListenFDs: "2", ListenFDNames: "a"},
		"no names":           {ListenFDs: "1"},
		"too many names":     {ListenFDs: "1", ListenFDNames: "a:b"},
		"keeper is no pid":   {KeeperPID: "x"},
		"keeper is negative": {KeeperPID: "-4"},
	} {
		if c, _, err := Inherit(env); err == nil {
			t.Errorf("%s: accepted: %v", name, c)
		}
	}
}

func TestInheritOfAnotherProcessIsNothing(t *testing.T) {
	c, held, err := Inherit(Environment{ListenPID: strconv.Itoa(os.Getpid() + 1), ListenFDs: "1", ListenFDNames: "a"})
	if err != nil || len(held) != 0 {
		t.Errorf("%v, %v", held, err)
	}
	for _, err := range []error{c.Ready(), c.Stopping(), c.Status("x"), c.Remove("x"), c.Barrier(t.Context())} {
		if !errors.Is(err, ErrNoKeeper) {
			t.Errorf("without a keeper: %v", err)
		}
	}
	if c.Lost() != nil || c.KeeperPID() != os.Getppid() {
		t.Error("the parent is watched")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeeperThatIsNotTheParentIsLost(t *testing.T) {
	for name, pid := range map[string]int{"another process": 1, "no process": 1 << 30} {
		before := openDescriptors(t)
		c, _, err := Inherit(Environment{KeeperPID: strconv.Itoa(pid)})
		if err != nil {
			t.Fatal(err)
		}
		// The numbers of open events are occupied only after Inherit.
		if after := openDescriptors(t); after != before {
			t.Errorf("%s: Inherit opened %d descriptors", name, after-before)
		}
		if err := c.Watch(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.Lost():
		default:
			t.Errorf("%s: not lost", name)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// silent is a keeper's socket that nobody reads.
func silent(t *testing.T) (*Client, *sys.FD) {
	t.Helper()
	address := filepath.Join(t.TempDir(), "notify")
	socket, err := sys.ListenDatagram(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	})
	c, _, err := Inherit(Environment{NotifySocket: address})
	if err != nil {
		t.Fatal(err)
	}
	return c, socket
}

func TestBarrierEndsWithItsContext(t *testing.T) {
	c, _ := silent(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Barrier(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestBarrierOfADeadKeeperIsAnError(t *testing.T) {
	c, socket := silent(t)
	// Dead, with the barrier in its queue: the pipe's end looks like an answer.
	child, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if c.watch, err = watchKeeper(child.Pid, func() bool { return true }, false); err != nil {
		t.Fatal(err)
	}
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	<-c.Lost()
	done := make(chan error, 1)
	go func() { done <- c.Barrier(t.Context()) }()
	if readable, err := sys.WaitReadable(socket, 10000); err != nil || !readable {
		t.Fatal(readable, err)
	}
	if err := sys.DropDatagram(socket); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrKeeperLost) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestPushRefusesMoreNamesThanFitAnEnvironment(t *testing.T) {
	c, socket := silent(t)
	long := strings.Repeat("n", maxName)
	var fds []*sys.FD
	defer func() {
		if err := closeAll(fds); err != nil {
			t.Error(err)
		}
	}()
	for i := range maxNames / (maxName + 1) {
		fd, err := sys.Memfd("x", 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := c.Push(long, fd); err != nil {
			t.Fatalf("push %d: %v", i, err)
		}
		if err := sys.DropDatagram(socket); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Push(long, fds[0]); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	if err := c.Push("a:b", fds[0]); !errors.Is(err, ErrBadName) {
		t.Error(err)
	}
	// What is at the limit can be started.
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Env: []string{EnvFDNames + "=" + c.sent.fdNames()}})
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Errorf("%v, %v", status, err)
	}
	if err := c.Status("two\nlines"); !errors.Is(err, ErrBadMessage) {
		t.Error(err)
	}
}

func TestStateThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":2}`, `{"version":1,"socket":2}`, `{"version":1,"socket":999999}`} {
		fd, err := sys.Memfd("state", 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Pwrite(fd.Int(), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
		if exit, err := Run(t.Context(), Options{State: strconv.Itoa(fd.Disown())}); exit != 1 || err == nil {
			t.Errorf("%q: %d, %v", text, exit, err)
		}
	}
	for _, value := range []string{"x", "0", "999999"} {
		if exit, err := Run(t.Context(), Options{State: value}); exit != 1 || err == nil {
			t.Errorf("%q: %d, %v", value, exit, err)
		}
	}
}
