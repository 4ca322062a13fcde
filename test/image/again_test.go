package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// another is an image with other data, and that data.
func another(t *testing.T) (ref string, data []byte) {
	t.Helper()
	data = toctest.Random(21, 1<<20)
	image := formatOf("estargz").packAll(t, tarOf(t, file("new", string(data))))
	return image.push(t, ocitest.New(t)), data
}

// wantFile reads a file of a mount.
func wantFile(t *testing.T, name string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v, %d bytes", name, err, len(got))
	}
}

// waitMounted waits until status has so many mounts.
func (m *mounted) waitMounted(n int) {
	m.t.Helper()
	instance.Eventually(m.t, 30*time.Second, func() error {
		if s, err := m.TryStatus(); err != nil || len(s.Mounted) != n {
			return fmt.Errorf("status has %+v, %w", s.Mounted, err)
		}
		return nil
	})
}

// The usual update: the old tree leaves, the new one comes in its place at once, and
// who uses the old one reads on, whatever happens to the worker meanwhile.
func TestMountWhereAnotherLeaves(t *testing.T) {
	for name, happens := range map[string]func(*held){
		"nothing": func(*held) {},
		"worker killed": func(h *held) {
			worker := h.WaitWorker(0)
			h.Kill(worker)
			h.WaitWorker(worker)
		},
		"upgrade": func(h *held) {
			worker := h.WaitWorker(0)
			h.Signal(syscall.SIGHUP)
			h.WaitWorker(worker)
		},
	} {
		for _, first := range []string{"old", "new"} {
			t.Run(name+", the "+first+" goes first", func(t *testing.T) {
				h := hold(t)
				ref, data := another(t)
				h.Lacuna("umount", "--lazy", h.dir)
				if _, err := h.Try("mount", ref, h.dir); err != nil {
					t.Fatal(err)
				}
				happens(h)
				wantFile(t, filepath.Join(h.dir, "new"), data)
				s := h.Status()
				if len(s.Mounted) != 2 || s.Mounted[0].Leaving || !s.Mounted[1].Leaving || s.Mounted[1].Dir != h.dir || len(s.Broken) > 0 {
					t.Errorf("status: %+v, broken %+v", s.Mounted, s.Broken)
				}
				if first == "new" {
					h.Lacuna("umount", h.dir)
				}
				happens(h)
				h.want(h.tell())
				if first == "old" {
					h.waitMounted(1)
					wantFile(t, filepath.Join(h.dir, "new"), data)
					h.Lacuna("umount", h.dir)
				}
				h.waitMounted(0)
				instance.Eventually(t, 10*time.Second, func() error {
					if _, err := os.Lstat(h.dir); !os.IsNotExist(err) {
						return errors.New("the directory is still there")
					}
					return nil
				})
				h.Stop()
				if left, err := filepath.Glob(filepath.Join(h.Dir, "*", "served", "*")); err != nil || len(left) > 0 {
					t.Errorf("records: %v, %v", left, err)
				}
			})
		}
	}
}

// One place may be left any number of times.
func TestMountWhereManyLeave(t *testing.T) {
	h := hold(t)
	for range 3 {
		h.Lacuna("umount", "--lazy", h.dir)
		h.Lacuna("mount", h.ref, h.dir)
		if err := syscall.Access(filepath.Join(h.dir, "data"), 4); err != nil {
			t.Error(err)
		}
	}
	h.want(h.tell())
	wantFile(t, filepath.Join(h.dir, "data"), h.data)
	h.waitMounted(1)
	h.umount(h.dir)
}

// Somebody unmounts with umount(8): status tells, and the place is free, whoever uses
// the old tree on.
func TestUmountByAnother(t *testing.T) {
	byHand := func(t *testing.T, dir string, flags int) {
		t.Helper()
		if err := syscall.Unmount(dir, flags); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("nobody uses it", func(t *testing.T) {
		m, ref := small(t)
		dir := m.mount(ref, "mnt")
		byHand(t, dir, 0)
		m.waitMounted(0)
		m.wantNothing(dir)
		byHand(t, m.mount(ref, "mnt"), 0)
		m.umount(m.mount(ref, "mnt"))
	})
	t.Run("and it is used", func(t *testing.T) {
		h := hold(t)
		ref, data := another(t)
		byHand(t, h.dir, syscall.MNT_DETACH)
		if s := h.Status(); len(s.Mounted) != 1 || !s.Mounted[0].Leaving {
			t.Errorf("status: %+v", s.Mounted)
		}
		h.mount(ref, "mnt")
		worker := h.WaitWorker(0)
		h.Kill(worker)
		h.WaitWorker(worker)
		h.want(h.tell())
		wantFile(t, filepath.Join(h.dir, "new"), data)
		h.waitMounted(1)
		h.umount(h.dir)
	})
	t.Run("and something else is mounted", func(t *testing.T) {
		m, ref := small(t)
		dir := m.mount(ref, "mnt")
		byHand(t, dir, 0)
		precious, off := tmpfsOn(t, dir)
		m.waitMounted(0)
		if _, err := os.Stat(precious); err != nil {
			t.Error(err)
		}
		off()
		instance.Eventually(t, 10*time.Second, func() error {
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				return errors.New("the directory is still there")
			}
			return nil
		})
	})
	t.Run("and a command in the foreground ends", func(t *testing.T) {
		m := &mounted{instance.New(t, ""), t}
		ref, _ := another(t)
		dir := filepath.Join(m.Dir, "mnt")
		m.StartForeground("mount", ref, dir)
		byHand(t, dir, 0)
		m.WaitEnd(0)
	})
}

// As for mount(8), a link to a directory is that directory.
func TestMountOnALink(t *testing.T) {
	m, ref := small(t)
	to, link := filepath.Join(m.Dir, "to"), filepath.Join(m.Dir, "link")
	if err := errors.Join(os.Mkdir(to, 0o755), os.Symlink("to", link)); err != nil {
		t.Fatal(err)
	}
	m.Lacuna("mount", ref, link)
	if s := m.Status(); len(s.Mounted) != 1 || s.Mounted[0].Dir != to {
		t.Errorf("status: %+v", s.Mounted)
	}
	m.Lacuna("hydrate", link)
	m.Lacuna("umount", link)
	m.waitMounted(0)
	if points := instance.MountsBelow(m.Dir); len(points) > 0 {
		t.Errorf("mounted: %v", points)
	}
	if _, err := os.Stat(link); err != nil {
		t.Errorf("the directory is gone: %v", err)
	}
}

// What a full disk keeps from being noted is no reason to fail: the mount is gone.
func TestUmountOnAFullDisk(t *testing.T) {
	m := startSmall(t)
	image := formatOf("estargz").packAll(t, stormTars(t, 24)...)
	ref, tree := image.push(t, ocitest.New(t)), image.tree(t)
	dir := m.mount(ref, "mnt")
	free := m.fillUp(256 << 10)
	if sum := readOnce(t, dir, filesOf(tree), 8); sum.Wrong+sum.Other > 0 || sum.EIO == 0 {
		t.Errorf("on a full disk: %s %q", sum.String(), sum.Examples)
	}
	m.umount(dir)
	free()
	dir = m.mount(ref, "mnt")
	compare(t, dir, tree)
	m.umount(dir)
	m.Lacuna("check", "--verify")
}

// A stop that waits tells for whom, and its mounts can be taken away meanwhile.
func TestStopThatWaitsCanBeAsked(t *testing.T) {
	h := hold(t)
	h.Signal(syscall.SIGTERM)
	instance.Eventually(t, 15*time.Second, func() error {
		s, err := h.TryStatus()
		if err != nil || !s.Stopping || len(s.Waits) != 1 ||
			!strings.Contains(s.Waits[0], h.dir) || !strings.Contains(s.Waits[0], fmt.Sprint(h.holder.Process.Pid)) {
			return fmt.Errorf("stopping: %v, for %q, %w", s.Stopping, s.Waits, err)
		}
		return nil
	})
	if out := h.Lacuna("status"); !strings.Contains(out, "waits for "+h.dir) {
		t.Errorf("status:\n%s", out)
	}
	if _, err := h.Try("mount", h.ref, h.dir+"2"); instance.ExitOf(err) != 1 || !strings.Contains(err.Error(), "lacuna status") {
		t.Errorf("mount while it stops: %v", err)
	}
	h.Lacuna("umount", "--lazy", h.dir)
	if points := instance.MountsBelow(h.Dir); len(points) > 0 {
		t.Errorf("mounted: %v", points)
	}
	h.Lacuna("hydrate", h.dir) // with nothing missing nobody needs it any more
	h.WaitEnd(0)
	h.want(h.tell())
}
