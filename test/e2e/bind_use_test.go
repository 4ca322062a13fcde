package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

// Who has an incomplete file of a bound directory open never reads zeros: it
// stays served, and where it must end, missing data is denied.

const boundSize = 8 << 20

// boundInForeground is a bound directory that a foreground command serves.
func boundInForeground(t *testing.T, sizes map[string]int64) *bound {
	t.Helper()
	b := &bound{lacuna: newLacuna(t, ""), reader: ondemandtest.StartReader(t)}
	b.hollow, b.devnode = filepath.Join(b.Dir, "hollow"), filepath.Join(b.Dir, "devnode")
	if err := os.Mkdir(b.hollow, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, size := range sizes {
		makeHollow(t, filepath.Join(b.hollow, name), size)
	}
	b.StartForeground("bind", b.hollow, "--devnode", b.devnode)
	return b
}

// wantStanding wants detach refused because of h, and the directory served on.
func (b *bound) wantStanding(h *holder, off int64) {
	b.t.Helper()
	_, err := b.Try("detach", b.hollow)
	want := fmt.Sprintf("in use: process %d (e2e.test) has blob open, which is incomplete", h.cmd.Process.Pid)
	if instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), want) {
		b.t.Fatalf("detach while blob is open: %v\nwant: %s", err, want)
	}
	h.wantPattern(stormSeed, off, 10000)
}

func TestBindDetachInUseIsRefused(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": boundSize, "other": 4096})
	b.connect(keeps, 0) // it has blob open as well, and does not count
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	b.wantStanding(h, 1<<20)
	// Also when nobody but the keeper knows the daemon.
	b.Kill(b.Worker())
	h.wantPattern(stormSeed, 2<<20, 10000)
	b.wantStanding(h, 3<<20)
	h.close()
	b.Lacuna("detach", b.hollow)
	if s := b.Status(); len(s.Bound) != 0 {
		t.Errorf("bound: %+v", s.Bound)
	}
	b.daemon.kill()
}

func TestBindDetachWithCompleteFileOpen(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20, "hollow": 1 << 20})
	b.connect(fills, 0)
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 1<<20)
	b.Lacuna("detach", b.hollow)
	h.wantPattern(stormSeed, 0, 1<<20)
	b.daemon.kill()
}

func TestStopServesBoundFileOn(t *testing.T) {
	for name, start := range map[string]func(*testing.T, map[string]int64) *bound{"daemon": newBound, "foreground": boundInForeground} {
		t.Run(name, func(t *testing.T) {
			b := start(t, map[string]int64{"blob": boundSize})
			b.connect(keeps, 0)
			h := hold(t, b.path("blob"))
			h.wantPattern(stormSeed, 0, 10000)
			b.Signal(syscall.SIGTERM)
			b.waitBusy()
			h.wantPattern(stormSeed, 1<<20, 10000)
			instance.Pause(time.Second)
			h.wantPattern(stormSeed, 2<<20, 10000)
			h.close()
			b.WaitEnd(0)
			b.wantUnbound()
		})
	}
}

func TestStopAskedTwiceDeniesBoundFile(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": boundSize})
	b.connect(keeps, 0)
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	worker := b.Worker()
	b.Signal(syscall.SIGTERM)
	b.waitBusy()
	b.Signal(syscall.SIGTERM)
	instance.Eventually(t, 30*time.Second, func() error {
		if instance.IsRunning(worker) {
			return fmt.Errorf("worker %d runs", worker)
		}
		return nil
	})
	for n := range 3 {
		if r := h.read(int64(n+1)<<20, 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
			t.Fatalf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
		}
		instance.Pause(time.Second)
	}
	select {
	case <-b.Ended:
		t.Fatal("the keeper has gone while the file is open")
	default:
	}
	h.close()
	b.WaitEnd(1)
	b.wantUnbound()
}

// wantUnbound wants that nothing of the instance is left, while the external
// daemon still has its files open.
func (b *bound) wantUnbound() {
	b.t.Helper()
	if pids := instance.ProcessesOf(b.Dir); len(pids) > 0 {
		b.t.Errorf("processes %v run", pids)
	}
	if _, err := os.Lstat(b.devnode); err == nil {
		b.t.Error("the socket is left")
	}
	if records, err := filepath.Glob(filepath.Join(b.Root, "served", "*")); err != nil || len(records) > 0 {
		b.t.Errorf("records %v, %v", records, err)
	}
	b.daemon.kill()
}
