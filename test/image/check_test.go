package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// Layers are checked by the digests of their chunks, with no registry; what is
// found wrong is fetched again.
func TestCheckVerifiesLayersOffline(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			reg, r := newFaulty(t)
			image := f.packAll(t, tarOf(t,
				file("small", "some text"), file("one", string(toctest.Random(1, 300_000))),
				file("two", string(toctest.Random(2, 5<<20+17)))))
			ref, tree := image.push(t, r), image.tree(t)
			m := start(t, "")
			dir := m.mount(ref, "mnt")
			if _, err := os.ReadFile(filepath.Join(dir, "one")); err != nil {
				t.Fatal(err)
			}
			object := m.objectOf(dir, 0)
			m.umount(dir)
			m.Stop()
			reg.set(func() { reg.down = true })
			if out := m.Lacuna("check", "--verify"); !strings.Contains(out, "verified") || strings.Contains(out, "CORRUPT") {
				t.Errorf("check of right bytes: %s", out)
			}
			flip(t, filepath.Join(object, "data"), toctest.Random(1, 300_000))
			out, err := m.Try("check", "--verify")
			if instance.ExitOf(err) != 4 || !strings.Contains(out, "CORRUPT") || !strings.Contains(out, "other bytes than the source") {
				t.Errorf("check of a wrong byte: %v: %s", err, out)
			}
			if out, err := m.Try("check"); err != nil || strings.Contains(out, "verified") {
				t.Errorf("check without --verify: %v: %s", err, out)
			}
			if out, err := m.Try("check", "--verify", "--repair"); instance.ExitOf(err) != 4 {
				t.Errorf("check --repair: %v: %s", err, out)
			}
			if out := m.Lacuna("check", "--verify"); strings.Contains(out, "CORRUPT") {
				t.Errorf("check after the repair: %s", out)
			}
			reg.set(func() { reg.down = false })
			m.StartDaemon()
			compare(t, m.mount(ref, "mnt"), tree)
			if out := m.Lacuna("check", "--verify"); !strings.Contains(out, ", bytes verified") {
				t.Errorf("check of a mounted image that is wholly present: %s", out)
			}
			m.umount(dir)
		})
	}
}

// A layer whose table of contents is gone cannot be verified; a mount makes it anew.
func TestCheckWithoutTableOfContents(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	image := formatOf("estargz").packAll(t, tarOf(t, file("one", string(toctest.Random(1, 300_000)))))
	ref := image.push(t, r)
	dir := m.mount(ref, "mnt")
	compare(t, dir, image.tree(t))
	m.umount(dir)
	tocs, err := filepath.Glob(filepath.Join(m.Root, "layers", "*.toc"))
	if err != nil || len(tocs) != 1 {
		t.Fatalf("%v, %v", tocs, err)
	}
	if err := os.Remove(tocs[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Try("check", "--verify"); instance.ExitOf(err) != 1 || !strings.Contains(err.Error(), "hint: it is made anew when its image is mounted") {
		t.Errorf("check: %v", err)
	}
	m.Lacuna("check")
	m.umount(m.mount(ref, "mnt"))
	if out := m.Lacuna("check", "--verify"); !strings.Contains(out, ", bytes verified") {
		t.Errorf("check: %s", out)
	}
}

// flip changes a byte of data, found by the bytes around it.
func flip(t *testing.T, path string, data []byte) {
	t.Helper()
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(all), string(data[1000:1100]))
	if at < 0 {
		t.Fatalf("%s has no such data", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{all[at] ^ 1}, int64(at))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
