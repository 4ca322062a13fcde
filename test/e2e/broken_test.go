package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/test/instance"
)

// objectDir is the folder of the one object in the cache.
func (i *lacuna) objectDir() string {
	i.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(i.Root, "objects", "*", "*"))
	if err != nil || len(dirs) != 1 {
		i.t.Fatalf("objects: %v, %v", dirs, err)
	}
	return dirs[0]
}

// breakAndRestart damages the object and has the next worker go on.
func (a *attached) breakAndRestart(damage func(dir string) error) {
	a.t.Helper()
	// Making a file shorter asks the worker, so this comes first.
	if err := damage(a.objectDir()); err != nil {
		a.t.Fatal(err)
	}
	worker := a.Worker()
	a.Kill(worker)
	a.WaitWorker(worker)
	a.WaitReady()
}

var damages = map[string]func(dir string) error{
	"description": func(dir string) error { return os.WriteFile(filepath.Join(dir, "object.json"), []byte("{"), 0o600) },
	"size":        func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), attachedSize/2) },
	"removed":     os.RemoveAll,
}

// Whose object is damaged is denied, shown with the reason, and can be detached.
func TestDamagedObjectIsDeniedAndDetached(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			a := attachedToDaemon(t, "")
			a.wantMissing()
			h := hold(t, a.file)
			a.breakAndRestart(damage)
			if r := h.read(1<<20, 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
				t.Errorf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
			}
			s := a.Status()
			if len(s.Attached) != 0 || len(s.Broken) != 1 || s.Broken[0].Path != a.file || s.Broken[0].Reason == "" {
				t.Fatalf("attached %+v, broken %+v", s.Attached, s.Broken)
			}
			if out := a.Lacuna("status"); !strings.Contains(out, "BROKEN") || !strings.Contains(out, a.file) {
				t.Errorf("status says\n%s", out)
			}
			_, err := a.Try("detach", a.file)
			if instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprintf("process %d", h.cmd.Process.Pid)) {
				t.Errorf("detach while it is open: %v", err)
			}
			if _, err := a.Try("hydrate", a.file); instance.ExitOf(err) != 4 {
				t.Errorf("hydrate: %v", err)
			}
			h.close()
			a.Lacuna("detach", a.file)
			a.wantNoFile()
			if s := a.Status(); len(s.Broken) != 0 {
				t.Errorf("broken: %+v", s.Broken)
			}
			if name == "size" {
				if out, err := a.Try("check", "--repair"); err != nil {
					t.Logf("check --repair: %v: %s", err, out)
				}
			}
			a.Lacuna("attach", a.server.URL(), a.file)
			a.wantMissing()
			a.Lacuna("detach", a.file)
		})
	}
}

func TestStopWithDamagedObject(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			a := attachedToDaemon(t, "")
			a.wantMissing()
			a.breakAndRestart(damage)
			a.Stop()
			a.wantGone()
		})
	}
}

// After the death of both, the next instance denies what it cannot serve and
// cannot take away.
func TestBothKilledDamagedObjectInUseIsDenied(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	a.Kill(a.Worker(), a.Keeper.Process.Pid)
	if err := damages["description"](a.objectDir()); err != nil {
		t.Fatal(err)
	}
	a.StartDaemon()
	if r := h.read(a.missing(), 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
		t.Errorf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
	}
	if s := a.Status(); len(s.Broken) != 1 {
		t.Errorf("broken: %+v", s.Broken)
	}
	h.close()
	a.Lacuna("detach", a.file)
	a.Stop()
	a.wantGone()
}

// A directory that cannot be bound again is denied, and can be detached.
func TestBrokenBindIsDeniedAndDetached(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	worker := b.Worker()
	moved := b.hollow + "-moved"
	if err := syscall.Kill(b.Keeper.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.Kill(worker)
	if err := os.Rename(b.hollow, moved); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(b.Keeper.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.WaitWorker(worker)
	b.WaitReady()
	if err := os.Rename(moved, b.hollow); err != nil {
		t.Fatal(err)
	}
	if r := h.read(512<<10, 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
		t.Errorf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
	}
	if s := b.Status(); len(s.Broken) != 1 || s.Broken[0].Kind != "bind" {
		t.Errorf("broken: %+v", s.Broken)
	}
	if _, err := b.Try("bind", b.hollow, "--devnode", b.devnode); instance.ExitOf(err) != 6 {
		t.Errorf("bind: %v", err)
	}
	if _, err := b.Try("detach", b.hollow); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprint(h.cmd.Process.Pid)) {
		t.Errorf("detach while blob is open: %v", err)
	}
	h.close()
	b.Lacuna("detach", b.hollow)
	b.daemon.kill()
	b.Lacuna("bind", b.hollow, "--devnode", b.devnode)
	b.connect(fills, 0)
	h = hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 256<<10, 10000)
	h.close()
	b.daemon.kill()
}
