package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// objectOf is the folder of the object of the mount's layer n.
func (m *mounted) objectOf(dir string, n int) string {
	m.t.Helper()
	for _, at := range m.Status().Mounted {
		if at.Dir == dir {
			id := at.Layers[n].Object
			return filepath.Join(m.Root, "objects", id[:2], id)
		}
	}
	m.t.Fatalf("nothing is mounted on %s", dir)
	return ""
}

// halfRead is a file of a mount that is kept open, of which the first half has
// been read.
type halfRead struct {
	*os.File
	t    testing.TB
	data []byte
}

const halfReadSize = 4 << 20

func (m *mounted) readHalf(path string, seed uint64) *halfRead {
	m.t.Helper()
	h := &halfRead{t: m.t, data: toctest.Random(seed, halfReadSize)}
	var err error
	if h.File, err = os.Open(path); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := h.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			m.t.Error(err)
		}
	})
	h.want(0, nil)
	return h
}

// want reads some bytes at off: the right ones, or the error.
func (h *halfRead) want(off int64, want error) {
	h.t.Helper()
	got := make([]byte, 10000)
	n, err := h.ReadAt(got, off)
	if !errors.Is(err, want) || want == nil && err != nil {
		h.t.Errorf("read of %s at %d: %v, want %v", h.Name(), off, err, want)
	}
	if string(got[:n]) != string(h.data[off:off+int64(n)]) || want != nil && n > 0 {
		h.t.Errorf("read of %s at %d: %d bytes, and wrong ones", h.Name(), off, n)
	}
}

// brokenImage has two layers of a file each.
func brokenImage(t *testing.T, m *mounted) (ref string, tree *node) {
	t.Helper()
	_, r := newFaulty(t)
	image := formatOf("estargz").packAll(t,
		tarOf(t, file("one", string(toctest.Random(1, halfReadSize)))),
		tarOf(t, file("two", string(toctest.Random(2, halfReadSize)))))
	return image.push(t, r), image.tree(t)
}

var deviceDamages = map[string]func(dir string) error{
	"description": func(dir string) error { return os.WriteFile(filepath.Join(dir, "object.json"), []byte("{"), 0o600) },
	"size":        func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), halfReadSize/2) },
	"removed":     os.RemoveAll,
}

// A mount of which a layer's device is damaged stands and is denied there, is shown
// with the reason, and can be taken down; the other layers are read on.
func TestDamagedDeviceIsDeniedAndUnmounted(t *testing.T) {
	for name, damage := range deviceDamages {
		t.Run(name, func(t *testing.T) {
			m := start(t, "")
			ref, tree := brokenImage(t, m)
			dir := m.mount(ref, "mnt")
			one, two := m.readHalf(dir+"/one", 1), m.readHalf(dir+"/two", 2)
			m.breakDevice(m.objectOf(dir, 1), damage)
			one.want(halfReadSize-20000, nil)
			two.want(halfReadSize-20000, syscall.EIO)
			s := m.Status()
			if len(s.Mounted) != 0 || len(s.Broken) != 1 || s.Broken[0].Path != dir || s.Broken[0].Kind != "mount" || s.Broken[0].Reason == "" {
				t.Fatalf("mounted %+v, broken %+v", s.Mounted, s.Broken)
			}
			if out := m.Lacuna("status"); !strings.Contains(out, "BROKEN") || !strings.Contains(out, "lacuna umount") {
				t.Errorf("status says\n%s", out)
			}
			for _, args := range [][]string{{"umount", dir}, {"detach", dir}} {
				_, err := m.Try(args...)
				if instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprintf("%s %s", args[0], dir)) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
					t.Errorf("%v while it is in use: %v", args, err)
				}
			}
			if _, err := m.Try("mount", ref, dir); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), "cannot be served") {
				t.Errorf("mount on it: %v", err)
			}
			if err := errors.Join(one.Close(), two.Close()); err != nil {
				t.Fatal(err)
			}
			m.umount(dir)
			if s := m.Status(); len(s.Broken) != 0 {
				t.Errorf("broken: %+v", s.Broken)
			}
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

// breakDevice damages an object and has the next worker go on.
func (m *mounted) breakDevice(dir string, damage func(dir string) error) {
	m.t.Helper()
	// Making a file shorter asks the worker, so this comes first.
	if err := damage(dir); err != nil {
		m.t.Fatal(err)
	}
	worker := m.WaitWorker(0)
	m.Kill(worker)
	m.WaitWorker(worker)
	m.WaitReady()
}

// An instance stops with a broken mount that nobody uses, and nothing is left.
func TestStopWithDamagedDevice(t *testing.T) {
	for name, damage := range deviceDamages {
		t.Run(name, func(t *testing.T) {
			m := start(t, "")
			ref, _ := brokenImage(t, m)
			dir := m.mount(ref, "mnt")
			m.breakDevice(m.objectOf(dir, 0), damage)
			m.Stop()
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is still there: %v", dir, err)
			}
			if points := instance.MountsBelow(m.Dir); len(points) > 0 {
				t.Errorf("mounted: %v", points)
			}
		})
	}
}

// After the death of both processes the next instance denies what it cannot serve
// and cannot take away, also where it has lost the plan of the image.
func TestBothKilledDamagedDeviceInUseIsDenied(t *testing.T) {
	for name, damage := range map[string]func(m *mounted, object string) error{
		"device": func(_ *mounted, object string) error { return deviceDamages["size"](object) },
		"plan": func(m *mounted, _ string) error {
			plans, err := filepath.Glob(filepath.Join(m.Root, "images", "*", "plan.json"))
			if err == nil {
				err = os.Remove(plans[0])
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, "")
			ref, tree := brokenImage(t, m)
			dir := m.mount(ref, "mnt")
			two := m.readHalf(dir+"/two", 2)
			object, s := m.objectOf(dir, 1), m.Status()
			m.Kill(s.WorkerPID, s.KeeperPID)
			<-m.Ended
			if err := damage(m, object); err != nil {
				t.Fatal(err)
			}
			m.StartDaemon()
			two.want(halfReadSize-20000, syscall.EIO)
			if s := m.Status(); len(s.Broken) != 1 {
				t.Errorf("broken: %+v", s.Broken)
			}
			if err := two.Close(); err != nil {
				t.Fatal(err)
			}
			m.umount(dir)
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

// A directory whose mount was taken away lazily is free while somebody reads there.
func TestMountWhereTheLastOneIsStillInUse(t *testing.T) {
	m := start(t, "")
	ref, tree := brokenImage(t, m)
	dir := m.mount(ref, "mnt")
	one := m.readHalf(dir+"/one", 1)
	m.Lacuna("umount", "--lazy", dir)
	if _, err := m.Try("umount", dir); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprintf("still in use by process %d", os.Getpid())) {
		t.Errorf("umount of what is left: %v", err)
	}
	m.mount(ref, "mnt")
	one.want(halfReadSize-20000, nil)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	m.waitMounted(1)
	compare(t, dir, tree)
	m.umount(dir)
}
