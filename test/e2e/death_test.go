package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

// attached is an instance with one attached file of 64 MiB.
type attached struct {
	*lacuna
	server *sourcetest.Server
	reader *ondemandtest.Reader
	file   string
	next   int64 // what lies behind it was not read yet
}

const attachedSize = 64 << 20

func newAttached(t *testing.T, config string) *attached {
	a := &attached{
		lacuna: newLacuna(t, config),
		server: sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), attachedSize),
		reader: ondemandtest.StartReader(t),
	}
	a.file = filepath.Join(a.Dir, "file")
	return a
}

func attachedToDaemon(t *testing.T, config string) *attached {
	a := newAttached(t, config)
	a.StartDaemon()
	a.Lacuna("attach", a.server.URL(), a.file)
	return a
}

func attachedInForeground(t *testing.T, config string) *attached {
	a := newAttached(t, config)
	a.StartForeground("attach", a.server.URL(), a.file)
	return a
}

// missing is the offset of something that nobody has read, nor read ahead.
func (a *attached) missing() int64 {
	a.next += 8 << 20
	return attachedSize - a.next
}

// wantMissing reads something missing, and compares it.
func (a *attached) wantMissing() {
	a.t.Helper()
	a.wantAt(a.missing())
}

func (a *attached) wantAt(off int64) {
	a.t.Helper()
	select {
	case r := <-a.reader.Start(a.file, off, 10000):
		if r.Errno != 0 || r.Err != nil || !bytes.Equal(r.Data, pattern(stormSeed, off, 10000)) {
			a.t.Fatalf("read at %d: %v %v, %d bytes, right: %v", off, r.Errno, r.Err, len(r.Data), bytes.Equal(r.Data, pattern(stormSeed, off, len(r.Data))))
		}
	case <-time.After(70 * time.Second):
		a.t.Fatalf("the read at %d hangs", off)
	}
}

// wantGone waits until the file, the mounts and the processes are no more.
func (a *attached) wantGone() {
	a.t.Helper()
	// Another test's mount namespace, with copies of all mounts, is waited for.
	instance.Eventually(a.t, 2*time.Minute, func() error {
		if pids := instance.ProcessesOf(a.Dir); len(pids) > 0 {
			return fmt.Errorf("processes %v run", pids)
		}
		return nil
	})
	a.wantNoFile()
}

func (a *attached) wantNoFile() {
	a.t.Helper()
	if _, err := os.Lstat(a.file); !errors.Is(err, fs.ErrNotExist) {
		a.t.Errorf("%s is still there: %v", a.file, err)
	}
	if points := instance.MountsBelow(a.Dir); len(points) > 0 {
		a.t.Errorf("mounted: %v", points)
	}
}

// other waits for a status that differs from the one before as same says.
func (i *lacuna) other(same func(control.Status) bool) (s control.Status) {
	i.t.Helper()
	instance.Eventually(i.t, 30*time.Second, func() (err error) {
		if s, err = i.TryStatus(); err == nil && same(s) {
			err = fmt.Errorf("keeper %d, worker %d", s.KeeperPID, s.WorkerPID)
		}
		return err
	})
	return s
}

func TestKeeperKilledWorkerStartsAnother(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	for range 3 {
		before := a.Status()
		a.Kill(before.KeeperPID)
		h.wantPattern(stormSeed, a.missing(), 10000)
		after := a.other(func(s control.Status) bool { return s.KeeperPID == before.KeeperPID })
		if after.WorkerPID != before.WorkerPID || !instance.IsRunning(after.KeeperPID) {
			t.Fatalf("keeper %d, worker %d; before %d, %d", after.KeeperPID, after.WorkerPID, before.KeeperPID, before.WorkerPID)
		}
		a.Kill(after.WorkerPID)
		h.wantPattern(stormSeed, a.missing(), 10000)
		again := a.other(func(s control.Status) bool { return s.WorkerPID == after.WorkerPID })
		if again.KeeperPID != after.KeeperPID {
			t.Fatalf("keeper %d, not %d", again.KeeperPID, after.KeeperPID)
		}
		a.wantAt(attachedSize - a.next)
	}
	h.close()
	a.Check()
	if err := syscall.Kill(a.Status().KeeperPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.wantGone()
}

func TestKeeperKilledWhileWorkerStarts(t *testing.T) {
	rng := instance.Rand(t)
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	for range 6 {
		before := a.Status()
		a.Kill(before.WorkerPID)
		instance.Eventually(t, 30*time.Second, func() error {
			if pid := instance.WorkerOf(before.KeeperPID); pid == 0 || pid == before.WorkerPID {
				return errors.New("no worker")
			}
			return nil
		})
		instance.Pause(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
		a.Kill(before.KeeperPID)
		h.wantPattern(stormSeed, a.missing(), 10000)
		a.other(func(s control.Status) bool { return s.KeeperPID == before.KeeperPID })
		a.wantAt(attachedSize - a.next)
	}
	if s := a.Status(); len(s.Unguarded) > 0 {
		t.Errorf("unguarded: %+v", s.Unguarded)
	}
	h.close()
	if err := syscall.Kill(a.Status().KeeperPID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.wantGone()
}

func TestKeeperKilledForegroundStops(t *testing.T) {
	a := attachedInForeground(t, "")
	a.wantMissing()
	h := hold(t, a.file)
	a.Kill(a.Status().KeeperPID)
	// The worker alone holds the group now: it stays for who has the file open.
	a.waitBusy()
	h.wantPattern(stormSeed, a.missing(), 10000)
	h.wantPattern(stormSeed, a.missing(), 10000)
	h.close()
	a.wantGone()
}

func TestBothKilledNextStartUnmounts(t *testing.T) {
	for _, start := range []func(*testing.T, string) *attached{attachedToDaemon, attachedInForeground} {
		a := start(t, "")
		a.wantMissing()
		s := a.Status()
		a.Kill(s.WorkerPID, s.KeeperPID)
		if len(instance.MountsBelow(a.Dir)) != 1 {
			t.Fatal("the mount is gone with its instance")
		}
		// Nobody guards the file: this is what the README warns of. It shows
		// that the test is one, and puts zeros into the page cache.
		off := a.missing()
		if r := a.reader.Read(a.file, off, 10000); !bytes.Equal(r.Data, make([]byte, 10000)) {
			t.Logf("unguarded read: %v", r.Errno)
		}
		a.StartDaemon()
		a.wantNoFile()
		s = a.Status()
		if len(s.Unguarded) != 1 || len(s.Unguarded[0].Files) != 1 || s.Unguarded[0].Files[0] != a.file ||
			!s.Unguarded[0].From.Before(s.Unguarded[0].To) {
			t.Errorf("unguarded: %+v", s.Unguarded)
		}
		if !strings.Contains(a.Log.String(), "unguarded") {
			t.Error("the log does not tell of it")
		}
		a.Lacuna("attach", a.server.URL(), a.file)
		a.wantAt(off)
		a.Check()
		a.Stop()
		a.wantGone()
	}
}

func TestBothKilledFileInUseIsGuardedAgain(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	s := a.Status()
	a.Kill(s.WorkerPID, s.KeeperPID)
	a.StartDaemon()
	h.wantPattern(stormSeed, a.missing(), 10000)
	a.wantMissing()
	s = a.Status()
	if len(s.Attached) != 1 || len(s.Unguarded) != 1 || len(s.Unguarded[0].Users) != 1 ||
		!strings.Contains(s.Unguarded[0].Users[0], fmt.Sprint(h.cmd.Process.Pid)) {
		t.Errorf("attached %+v, unguarded %+v; process %d has the file open", s.Attached, s.Unguarded, h.cmd.Process.Pid)
	}
	h.close()
	a.Lacuna("detach", a.file)
	a.Stop()
	a.wantGone()
}

// Zeros that were read while nobody served do not stay in the page cache.
func TestBothKilledZerosAreForgotten(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	s := a.Status()
	a.Kill(s.WorkerPID, s.KeeperPID)
	off := a.missing()
	if r := h.read(off, 10000); !bytes.Equal(r.Data, make([]byte, 10000)) {
		t.Logf("unguarded read: %v", r.Errno)
	}
	a.StartDaemon()
	h.wantPattern(stormSeed, off, 10000)
	h.close()
	a.Lacuna("detach", a.file)
	a.Stop()
	a.wantGone()
}

// Who has it open is guarded again also where somebody has unmounted it meanwhile.
func TestBothKilledUnmountedFileIsGuardedAgain(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	s := a.Status()
	a.Kill(s.WorkerPID, s.KeeperPID)
	if err := syscall.Unmount(a.file, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	a.StartDaemon()
	h.wantPattern(stormSeed, a.missing(), 10000)
	if s = a.Status(); len(s.Attached) != 1 || len(s.Unguarded) != 1 {
		t.Errorf("attached %+v, unguarded %+v", s.Attached, s.Unguarded)
	}
	h.close()
	instance.Eventually(t, 20*time.Second, func() error {
		if s := a.Status(); len(s.Attached) > 0 {
			return fmt.Errorf("attached: %+v", s.Attached)
		}
		return nil
	})
	a.Stop()
	a.wantGone()
}

func TestNobodyReadsTheLog(t *testing.T) {
	a := newAttached(t, "")
	a.Deaf = true
	out := a.Start("--verbose", "daemon")
	a.WaitReady()
	a.Lacuna("attach", a.server.URL(), a.file)
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	keeper, worker := a.Keeper.Process.Pid, a.Worker()
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000) // and that is logged
	a.Kill(worker)                               // as is that
	h.wantPattern(stormSeed, a.missing(), 10000)
	if s := a.Status(); s.KeeperPID != keeper || s.WorkerPID == worker {
		t.Errorf("keeper %d, worker %d; before %d, %d", s.KeeperPID, s.WorkerPID, keeper, worker)
	}
	h.close()
	a.Stop()
	a.wantGone()
}

// A log that nobody reads any more, in a pipe that is full, holds up nobody.
func TestNobodyEmptiesTheLog(t *testing.T) {
	a := newAttached(t, "")
	a.Deaf = true
	out := a.Start("--verbose", "daemon")
	a.WaitReady()
	a.Lacuna("attach", a.server.URL(), a.file)
	pipe, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", a.Keeper.Process.Pid), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{4096, 1} {
		for err == nil {
			_, err = syscall.Write(int(pipe.Fd()), bytes.Repeat([]byte("\n"), n))
		}
		if !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	worker := a.Worker()
	for range 2 {
		a.wantMissing() // and that is logged
	}
	a.Kill(worker)
	a.wantMissing()
	a.Lacuna("detach", a.file)
	a.Stop()
	a.wantGone()
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNextStartLeavesOthersAlone(t *testing.T) {
	a, b := attachedToDaemon(t, ""), newAttached(t, "")
	// The same object in a root of the same last name.
	b.StartDaemon()
	b.Lacuna("attach", a.server.URL(), b.file)
	s := a.Status()
	a.Kill(s.WorkerPID, s.KeeperPID)
	a.StartDaemon()
	a.wantNoFile()
	if s := a.Status(); len(s.Unguarded) != 1 || len(s.Unguarded[0].Files) != 1 {
		t.Errorf("unguarded: %+v", s.Unguarded)
	}
	if len(instance.MountsBelow(b.Dir)) != 1 {
		t.Fatal("the other instance's file is gone")
	}
	b.wantMissing()
}
