package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

// mounted is an instance with images mounted.
type mounted struct {
	*instance.Instance
	t testing.TB
}

func start(t *testing.T, config string) *mounted {
	t.Helper()
	m := &mounted{instance.New(t, config), t}
	m.StartDaemon()
	return m
}

// mount mounts an image and returns where.
func (m *mounted) mount(ref, name string) string {
	m.t.Helper()
	dir := filepath.Join(m.Dir, name)
	m.Lacuna("mount", ref, dir)
	return dir
}

// umount wants nothing to be left of the mount.
func (m *mounted) umount(dir string) {
	m.t.Helper()
	m.Lacuna("umount", dir)
	m.wantNothing(dir)
}

// wantNothing wants nothing to be left of a mount.
func (m *mounted) wantNothing(dir string) {
	m.t.Helper()
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		m.t.Errorf("%s is still there: %v", dir, err)
	}
	if points := instance.MountsBelow(dir); len(points) > 0 {
		m.t.Errorf("mounted: %v", points)
	}
	for _, at := range m.Status().Mounted {
		if at.Dir == dir {
			m.t.Errorf("status has %+v", at)
		}
	}
}

// wantSame mounts the image, compares it with the tree, and unmounts it.
func (m *mounted) wantSame(ref string, want *node) {
	m.t.Helper()
	began := time.Now()
	dir := m.mount(ref, strings.ReplaceAll(filepath.Base(m.t.Name()), "/", "-"))
	took := time.Since(began)
	files, size := compare(m.t, dir, want)
	m.t.Logf("mounted in %v; %d names and %d MiB compared after %v", took.Round(time.Millisecond), files, size>>20, time.Since(began).Round(time.Millisecond))
	m.wantTools(dir, want)
	m.umount(dir)
}

// everyFormat compares an image in all formats but some. tars are its layers.
func everyFormat(t *testing.T, tars func(format) [][]byte, but ...string) {
	t.Helper()
	r := ocitest.New(t)
	m := start(t, "")
	for _, f := range formats {
		if slices.Contains(but, f.name) {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := f.packAll(t, tars(f)...)
			want := image.tree(t)
			ref := image.push(t, r)
			m.wantSame(ref, want)
			// Once more, with what is in the cache.
			m.wantSame(ref, want)
		})
	}
	m.Lacuna("check")
}

// inAll are the same layers for all formats.
func inAll(tars [][]byte) func(format) [][]byte { return func(format) [][]byte { return tars } }

func TestRootFilesystemInEveryFormat(t *testing.T) { everyFormat(t, inAll(rootTars(t))) }
