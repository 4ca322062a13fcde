package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// objectDir is the folder of the one object in the cache.
func (i *instance) objectDir() string {
	i.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(i.root, "objects", "*", "*"))
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
	worker := a.worker()
	a.killNow(worker)
	a.waitWorker(worker)
	a.waitReady()
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
			s := a.status()
			if len(s.Attached) != 0 || len(s.Broken) != 1 || s.Broken[0].Path != a.file || s.Broken[0].Reason == "" {
				t.Fatalf("attached %+v, broken %+v", s.Attached, s.Broken)
			}
			if out := a.lacuna("status"); !strings.Contains(out, "BROKEN") || !strings.Contains(out, a.file) {
				t.Errorf("status says\n%s", out)
			}
			_, err := a.try("detach", a.file)
			if exitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprintf("process %d", h.cmd.Process.Pid)) {
				t.Errorf("detach while it is open: %v", err)
			}
			if _, err := a.try("hydrate", a.file); exitOf(err) != 4 {
				t.Errorf("hydrate: %v", err)
			}
			h.close()
			a.lacuna("detach", a.file)
			a.wantNoFile()
			if s := a.status(); len(s.Broken) != 0 {
				t.Errorf("broken: %+v", s.Broken)
			}
			if name == "size" {
				if out, err := a.try("check", "--repair"); err != nil {
					t.Logf("check --repair: %v: %s", err, out)
				}
			}
			a.lacuna("attach", a.server.URL(), a.file)
			a.wantMissing()
			a.lacuna("detach", a.file)
		})
	}
}

func TestStopWithDamagedObject(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			a := attachedToDaemon(t, "")
			a.wantMissing()
			a.breakAndRestart(damage)
			a.stop()
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
	a.kill(a.worker(), a.keeper.Process.Pid)
	if err := damages["description"](a.objectDir()); err != nil {
		t.Fatal(err)
	}
	a.startDaemon()
	if r := h.read(a.missing(), 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
		t.Errorf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
	}
	if s := a.status(); len(s.Broken) != 1 {
		t.Errorf("broken: %+v", s.Broken)
	}
	h.close()
	a.lacuna("detach", a.file)
	a.stop()
	a.wantGone()
}

// A directory that cannot be bound again is denied, and can be detached.
func TestBrokenBindIsDeniedAndDetached(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	worker := b.worker()
	moved := b.hollow + "-moved"
	if err := syscall.Kill(b.keeper.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.killNow(worker)
	if err := os.Rename(b.hollow, moved); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(b.keeper.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.waitWorker(worker)
	b.waitReady()
	if err := os.Rename(moved, b.hollow); err != nil {
		t.Fatal(err)
	}
	if r := h.read(512<<10, 10000); r.Errno != syscall.EIO || len(r.Data) > 0 {
		t.Errorf("read of missing data: %v, %d bytes", r.Errno, len(r.Data))
	}
	if s := b.status(); len(s.Broken) != 1 || s.Broken[0].Kind != "bind" {
		t.Errorf("broken: %+v", s.Broken)
	}
	if _, err := b.try("bind", b.hollow, "--devnode", b.devnode); exitOf(err) != 6 {
		t.Errorf("bind: %v", err)
	}
	if _, err := b.try("detach", b.hollow); exitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprint(h.cmd.Process.Pid)) {
		t.Errorf("detach while blob is open: %v", err)
	}
	h.close()
	b.lacuna("detach", b.hollow)
	b.daemon.kill()
	b.lacuna("bind", b.hollow, "--devnode", b.devnode)
	b.connect(fills, 0)
	h = hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 256<<10, 10000)
	h.close()
	b.daemon.kill()
}

func (i *instance) killNow(pid int) {
	i.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		i.t.Fatal(err)
	}
}
