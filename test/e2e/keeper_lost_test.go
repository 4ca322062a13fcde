package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/test/instance"
)

// signal sends sig to a process of the instance.
func (a *attached) signal(pid int, sig syscall.Signal) {
	a.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		a.t.Fatalf("signal %v to process %d: %v", sig, pid, err)
	}
}

// stoppedWorker kills the worker and waits for the next one, which stops before it
// begins.
func (a *attached) stoppedWorker(keeper, before int) (pid int) {
	a.t.Helper()
	// The keeper starts what lies where its program did.
	program := filepath.Join(a.Dir, "program")
	script := fmt.Sprintf("#!/bin/sh\nkill -STOP $$\nexec %s \"$@\"\n", program)
	err := os.Rename(a.Bin, program)
	if err == nil {
		err = os.WriteFile(a.Bin, []byte(script), 0o755)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.Kill(before)
	instance.Eventually(a.t, 30*time.Second, func() error {
		for _, child := range instance.ChildrenOf(keeper) {
			if pid = child; child != before && instance.IsStopped(child) {
				return nil
			}
		}
		return errors.New("no worker")
	})
	a.t.Cleanup(func() {
		if instance.IsStopped(pid) { // as a shell, which is not known as the instance's
			a.signal(pid, syscall.SIGKILL)
		}
	})
	if err := os.Rename(program, a.Bin); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Symlink(a.Bin, program); err != nil {
		a.t.Fatal(err)
	}
	return pid
}

// wantNoZeros reads something missing, which fails or comes.
func (a *attached) wantNoZeros(h *holder) (failed bool) {
	a.t.Helper()
	off := a.missing()
	if r := h.read(off, 10000); r.Errno == 0 {
		a.wantAt(off)
		return false
	} else if r.Errno != syscall.EIO {
		a.t.Fatalf("read at %d: %v", off, r.Errno)
	}
	return true
}

// The keeper is dead when the worker begins.
func TestKeeperKilledBeforeWorkerBegins(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	before := a.Status()
	worker := a.stoppedWorker(before.KeeperPID, before.WorkerPID)
	a.Kill(before.KeeperPID)
	a.signal(worker, syscall.SIGCONT)
	h.wantPattern(stormSeed, a.missing(), 10000)
	after := a.other(func(s control.Status) bool { return s.KeeperPID == before.KeeperPID })
	if after.WorkerPID != worker {
		t.Errorf("worker %d, not %d", after.WorkerPID, worker)
	}
	h.close()
	a.signal(after.KeeperPID, syscall.SIGTERM)
	a.wantGone()
}

// A worker that cannot begin, and whose keeper is dead, alone has the group: it
// ends at once, but not before it has a keeper that goes on.
func TestKeeperKilledWorkerCannotBegin(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	before := a.Status()
	worker := a.stoppedWorker(before.KeeperPID, before.WorkerPID)
	a.Kill(before.KeeperPID)
	away := a.Root + ".away"
	if err := os.Rename(a.Root, away); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.Root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.signal(worker, syscall.SIGCONT)
	instance.Eventually(t, 30*time.Second, func() error {
		if instance.IsRunning(worker) {
			return errors.New("the worker that cannot begin runs")
		}
		return nil
	})
	if !a.wantNoZeros(h) { // the keeper denies once several workers have failed
		t.Fatal("a read succeeds while no worker can begin")
	}
	if err := errors.Join(os.Remove(a.Root), os.Rename(away, a.Root)); err != nil {
		t.Fatal(err)
	}
	after := a.other(func(s control.Status) bool { return s.KeeperPID == before.KeeperPID || s.WorkerPID == worker })
	h.wantPattern(stormSeed, a.missing(), 10000)
	h.close()
	a.signal(after.KeeperPID, syscall.SIGTERM)
	a.wantGone()
}

// A worker that is asked to hand over when its keeper is dead hands over to a new one.
func TestKeeperKilledWorkerHandsOver(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	for range 3 {
		before := a.Status()
		a.signal(before.WorkerPID, syscall.SIGSTOP)
		a.signal(before.WorkerPID, syscall.SIGUSR1)
		a.Kill(before.KeeperPID)
		a.signal(before.WorkerPID, syscall.SIGCONT)
		h.wantPattern(stormSeed, a.missing(), 10000)
		a.other(func(s control.Status) bool {
			return s.KeeperPID == before.KeeperPID || s.WorkerPID == before.WorkerPID
		})
	}
	h.close()
	a.signal(a.Status().KeeperPID, syscall.SIGTERM)
	a.wantGone()
}

// A worker that stops leaves what is in use to its keeper, which denies: also where
// that is killed meanwhile.
func TestKeeperKilledWhileWorkerStops(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	s := a.Status()
	a.signal(s.WorkerPID, syscall.SIGTERM)
	a.waitBusy()
	a.Kill(s.KeeperPID)
	h.wantPattern(stormSeed, a.missing(), 10000)
	a.signal(s.WorkerPID, syscall.SIGTERM) // asked again: it waits for nobody
	instance.Eventually(t, 30*time.Second, func() error {
		if instance.IsRunning(s.WorkerPID) {
			return errors.New("the worker runs")
		}
		return nil
	})
	if !a.wantNoZeros(h) {
		t.Error("a read succeeds without a worker")
	}
	h.close()
	a.wantGone()
}
