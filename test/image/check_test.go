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
		if f.soci > 0 {
			continue // zTOCs have digests of compressed bytes only, which are not kept
		}
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

// What was made for objects that are gone is removed by --repair, and nothing else.
func TestCheckRemovesWhatBelongsToNoObject(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	kept := formatOf("gzip").packAll(t, tarOf(t, file("one", string(toctest.Random(1, 300_000)))))
	lost := formatOf("estargz").packAll(t, tarOf(t, file("two", string(toctest.Random(2, 300_000)))))
	keptRef, tree := r.Push(t, "kept:v1", kept.Image), kept.tree(t)
	m.umount(m.mount(keptRef, "mnt"))
	dir := m.mount(r.Push(t, "lost:v1", lost.Image), "mnt")
	object := m.objectOf(dir, 0)
	source, attached := filepath.Join(m.Dir, "source"), filepath.Join(m.Dir, "attached")
	if err := os.WriteFile(source, toctest.Random(3, 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Lacuna("attach", source, attached)
	if out, err := m.Try("check"); err != nil || strings.Contains(out, "gone") {
		t.Errorf("check while all is there: %v: %s", err, out)
	}
	file := m.Status().Attached[0].Object
	m.Lacuna("detach", attached)
	m.umount(dir)
	m.Stop()
	if err := errors.Join(os.RemoveAll(object), os.RemoveAll(filepath.Join(m.Root, "objects", file[:2], file))); err != nil {
		t.Fatal(err)
	}
	left := func() int {
		t.Helper()
		n := 0
		for _, pattern := range []string{"images/*", "layers/*", "files/*"} {
			names, err := filepath.Glob(filepath.Join(m.Root, pattern))
			if err != nil {
				t.Fatal(err)
			}
			n += len(names)
		}
		return n
	}
	if n := left(); n != 5 { // two images, their layers, and a file
		t.Fatalf("%d filesystem images and tables of contents", n)
	}
	m.Lacuna("check")
	if n := left(); n != 5 {
		t.Errorf("check has left %d", n)
	}
	m.Lacuna("check", "--repair")
	if n := left(); n != 2 {
		t.Errorf("check --repair has left %d", n)
	}
	m.StartDaemon()
	layers, err := kept.Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blobs := func(q ocitest.Request) bool { return strings.HasSuffix(q.Path, "/blobs/"+digest.String()) }
	before := r.Count(blobs)
	dir = m.mount(keptRef, "mnt")
	if n := r.Count(blobs) - before; n > 0 {
		t.Errorf("%d requests for layers of an image that was kept", n)
	}
	compare(t, dir, tree)
	m.umount(dir)
}
