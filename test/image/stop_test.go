package image

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// Under the shipped unit `lacuna stop` ends the unit, which is not started again; what
// is in use is served until it is free.
func TestStopCommandUnderSystemd(t *testing.T) {
	image := formatOf("estargz").packAll(t, tarOf(t, file("data", string(toctest.Random(12, 1<<20)))))
	ref := image.push(t, ocitest.New(t))
	s := startUnderSystemd(t, "")
	dir := s.mount(ref, "mnt")
	end := s.holdInside(filepath.Join(dir, "data"))
	for range 2 {
		_, err := s.Try("stop")
		if instance.ExitOf(err) != int(control.ExitInUse) || !strings.Contains(err.Error(), "(sleep)") {
			t.Errorf("stop while it is in use: %v", err)
		}
	}
	if got := s.erofs(); len(got) != 1 {
		t.Errorf("mounted: %q", got)
	}
	compare(t, s.inside+dir, image.tree(t))
	end()
	s.wantStopped()
	s.systemctl("start", unitName)
	s.WaitReady()
	s.mount(ref, "mnt")
	s.Lacuna("stop")
	s.wantStopped()
}

// A mount that cannot be served is taken away lazily, as any other: its directory is
// free at once, and its users are denied until they are done. So is one that somebody
// else unmounts.
func TestBrokenMountLeaves(t *testing.T) {
	for how, unmount := range map[string]func(m *mounted, dir string) error{
		"lazily": func(m *mounted, dir string) error { _, err := m.Try("umount", "--lazy", dir); return err },
		"by others": func(_ *mounted, dir string) error {
			return syscall.Unmount(dir, syscall.MNT_DETACH)
		},
	} {
		t.Run(how, func(t *testing.T) {
			m := start(t, "")
			ref, tree := brokenImage(t, m)
			dir := m.mount(ref, "mnt")
			two := m.readHalf(dir+"/two", 2)
			m.breakDevice(m.objectOf(dir, 1), deviceDamages["size"])
			if s := m.Status(); len(s.Broken) != 1 || s.Broken[0].Leaving || !strings.Contains(s.Broken[0].Reason, "layer 2 (") {
				t.Fatalf("broken: %+v", s.Broken)
			}
			if err := unmount(m, dir); err != nil {
				t.Fatal(err)
			}
			if s := m.Status(); len(s.Broken) != 1 || !s.Broken[0].Leaving || !strings.Contains(s.Broken[0].Users, "(image.test)") {
				t.Errorf("broken: %+v", s.Broken)
			}
			two.want(halfReadSize-20000, syscall.EIO)
			other := formatOf("estargz").packAll(t, tarOf(t, file("other", string(toctest.Random(3, 100_000)))))
			m.mount(other.push(t, ocitest.New(t)), "mnt") // in its place
			compare(t, dir, other.tree(t))
			two.want(halfReadSize-20000, syscall.EIO)
			if err := two.Close(); err != nil {
				t.Fatal(err)
			}
			instance.Eventually(t, 20*time.Second, func() error {
				if s := m.Status(); len(s.Broken) > 0 {
					return errors.New("it is still there")
				}
				return nil
			})
			m.umount(dir)
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}
