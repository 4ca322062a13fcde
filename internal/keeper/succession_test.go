package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// halted waits for a child of pid that is not known yet and has stopped.
func (f *family) halted(pid int) int {
	f.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(time.Millisecond) {
		// The kernel lists the children of each thread by themselves (proc_pid_task).
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		if err != nil {
			f.t.Fatal(err)
		}
		for _, list := range lists {
			b, err := os.ReadFile(list)
			if err != nil {
				continue // the thread has ended
			}
			for _, word := range strings.Fields(string(b)) {
				child, err := strconv.Atoi(word)
				if state, _ := procState(child); err != nil || state != "T" || !f.meet(child) {
					continue
				}
				return child
			}
		}
	}
	f.t.Fatalf("process %d has no stopped child", pid)
	return 0
}

// meet notes a process, and tells whether it was not known.
func (f *family) meet(pid int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.pids, pid) {
		return false
	}
	f.pids = append(f.pids, pid)
	return true
}

// A keeper that does not answer yet is not told of: SIGTERM would kill it, and
// nobody would stop. One that is killed then was no keeper.
func TestNewKeeperIsToldOfOnceItAnswers(t *testing.T) {
	f := startFamily(t, self(t), "", testHalt+"=1")
	old := f.cmd.Process.Pid
	worker := number(t, f.expect("up "), "pid")
	f.signal(old, syscall.SIGKILL)
	first := f.halted(worker)
	f.send("keeper")
	if got := number(t, f.expect("keeper "), "pid"); got != old {
		t.Errorf("keeper %d is told of before it answers; %d was", got, old)
	}
	f.signal(first, syscall.SIGKILL)
	line := f.expect("new keeper ")
	if got := number(t, line, "pid"); got != old || strings.HasSuffix(line, "err=<nil>") {
		t.Error(line)
	}
	second := f.halted(worker)
	f.signal(second, syscall.SIGCONT)
	line = f.expect("new keeper ")
	if got := number(t, line, "pid"); got != second || !strings.HasSuffix(line, "err=<nil>") {
		t.Fatal(line)
	}
	// What is told of can be asked to stop.
	f.signal(second, syscall.SIGTERM)
	f.expect("bye")
	f.expect("last stop event pipe-r pipe-w table")
	f.expect("keeper ends: 0")
	f.expectEnd()
}

// A worker that has a keeper's descriptors, and never got ready itself, leaves
// them to a keeper that starts the next worker.
func TestNewKeeperOfWorkerThatInherited(t *testing.T) {
	f := startFamily(t, self(t), "unready")
	old := f.cmd.Process.Pid
	first := f.expect("up ")
	f.signal(number(t, first, "pid"), syscall.SIGKILL)
	second := f.expect("up ")
	f.signal(old, syscall.SIGKILL)
	f.expect("new keeper ")
	f.signal(number(t, second, "pid"), syscall.SIGKILL)
	third := f.expect("up ")
	if got := field(t, third, "held"); got != allHeld {
		t.Errorf("held: %s", got)
	}
	f.signal(number(t, third, "keeper"), syscall.SIGTERM)
	f.expect("keeper ends: 0")
	f.expectEnd()
}

// The socket of a keeper that was killed refuses before its end is to be seen: a
// worker must not take that for an error, and end as well.
func TestSocketRefusesBeforeTheKeeperIsGone(t *testing.T) {
	for name, gone := range map[string]func(*Client) error{
		"refused": func(*Client) error { return nil },
		"removed": func(c *Client) error { return os.Remove(c.address) },
	} {
		t.Run(name, func(t *testing.T) {
			c, socket := silent(t)
			keeper := exec.Command("/bin/cat")
			in, err := keeper.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := keeper.Start(); err != nil {
				t.Fatal(err)
			}
			if c.watch, err = watchKeeper(keeper.Process.Pid, func() bool { return true }, false); err != nil {
				t.Fatal(err)
			}
			if err := socket.Close(); err != nil {
				t.Fatal(err)
			}
			if err := gone(c); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			time.AfterFunc(100*time.Millisecond, func() { ended <- in.Close() })
			if err := c.Ready(); err != nil {
				t.Error(err)
			}
			if !c.IsLost() {
				t.Error("it did not wait for the end")
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if err := keeper.Wait(); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
