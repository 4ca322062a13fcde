package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// wrongName is the zTOC with the name of a file changed.
func wrongName(t testing.TB, z []byte, _ int64) []byte {
	t.Helper()
	wrong := bytes.Clone(z)
	at := bytes.LastIndex(wrong, []byte("layer0/file0001"))
	if at < 0 {
		t.Fatal("the zTOC does not name layer0/file0001")
	}
	wrong[at+len("layer0/file000")] = 'X'
	return wrong
}

// wrongSizes is the zTOC of a layer with files of 4096 bytes said to have 4095.
func wrongSizes(t testing.TB, z []byte, layer int64) []byte {
	t.Helper()
	read, err := soci.Open(t.Context(), mem.New(z), layer)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := read.Spans.Record(0)
	last, n := read.Spans.Record(read.Spans.Count() - 1)
	wrong, changed := bytes.Clone(z), false
	for at := int64(0); at+8 <= int64(len(z)); at += 4 {
		if at+8 > first && at < last+n {
			continue // the records
		}
		if bytes.Equal(z[at:at+8], []byte{0, 16, 0, 0, 0, 0, 0, 0}) {
			wrong[at], wrong[at+1], changed = 0xff, 15, true
		}
	}
	if !changed {
		t.Fatal("no file has 4096 bytes")
	}
	return wrong
}

// Metadata of a zTOC that came damaged once are shown by no mount after the one in
// which that was found, and give no byte in any: not where it was found and not where
// whoever served it died before.
func TestIndexWhoseMetadataWereDamaged(t *testing.T) {
	for _, format := range []string{"soci1", "soci2"} {
		for name, damage := range map[string]func(testing.TB, []byte, int64) []byte{"name": wrongName, "size": wrongSizes} {
			for _, found := range []bool{true, false} {
				t.Run(format+"/"+name+map[bool]string{true: "/found", false: "/not found"}[found], func(t *testing.T) {
					staleIndex(t, format, found, damage)
				})
			}
		}
	}
}

func staleIndex(t *testing.T, format string, found bool, damage func(testing.TB, []byte, int64) []byte) {
	t.Helper()
	r := ocitest.New(t)
	m := start(t, "")
	image := formatOf(format).packAll(t, stormTars(t, 4)[0])
	ref := image.push(t, r)
	z := image.ztocs[0]
	r.Blob(z, serve(damage(t, z, int64(len(image.layers[0].blob)))))
	refused := func(dir string) {
		t.Helper()
		for _, l := range m.Status().Mounted[0].Layers {
			if l.Verified {
				t.Error("verified before the index was")
			}
		}
		if _, err := os.ReadFile(filepath.Join(dir, "layer0/file0000")); !errors.Is(err, syscall.EIO) {
			t.Errorf("read by an index that is wrong: %v", err)
		}
		for _, l := range m.Status().Mounted[0].Layers {
			if l.Verified || l.Error == "" || l.Present > 0 {
				t.Errorf("status says of a layer whose index is wrong: %+v", l)
			}
		}
	}
	dir := m.mount(ref, "mnt")
	if found {
		refused(dir)
	}
	m.umount(dir)
	r.Blob(z, serve(z))
	if !found {
		dir = m.mount(ref, "mnt")
		refused(dir)
		m.umount(dir)
	}
	dir = m.mount(ref, "mnt")
	compare(t, dir, image.tree(t))
	for _, l := range m.Status().Mounted[0].Layers {
		if l.Error != "" || l.Verified != (format == "soci2") {
			t.Errorf("status says of a layer whose index is right: %+v", l)
		}
	}
	m.umount(dir)
}

// A kept zTOC that is touched, damaged or removed while it is in use, or is damaged
// before, keeps no reader from what its layer holds.
func TestKeptIndexIsTouched(t *testing.T) {
	flip := func(name string, at func(z []byte)) error {
		z, err := os.ReadFile(name)
		if err == nil {
			at(z)
			err = os.WriteFile(name, z, 0o600)
		}
		return err
	}
	r := ocitest.New(t)
	image := formatOf("soci2").packAll(t, stormTars(t, 4)[0])
	ref := image.push(t, r)
	read, err := soci.Open(t.Context(), mem.New(image.ztocs[0]), int64(len(image.layers[0].blob)))
	if err != nil {
		t.Fatal(err)
	}
	record, _ := read.Spans.Record(min(3, read.Spans.Count()-1))
	for what, touch := range map[string]func(name string) error{
		"permissions": func(name string) error { return os.Chmod(name, 0o640) },
		"removed":     os.Remove,
		"windows": func(name string) error {
			return flip(name, func(z []byte) {
				for at := 9000; at < len(z); at += 30000 {
					z[at] ^= 1
				}
			})
		},
		"bits": func(name string) error { return flip(name, func(z []byte) { z[record+16] |= 8 }) },
	} {
		for _, mounted := range []bool{true, false} {
			t.Run(what+map[bool]string{true: "/mounted", false: "/before"}[mounted], func(t *testing.T) {
				m := start(t, "")
				dir := m.mount(ref, "mnt")
				if _, err := os.ReadFile(filepath.Join(dir, "layer0/file0000")); err != nil {
					t.Fatal(err)
				}
				if !mounted {
					m.umount(dir)
				}
				kept, err := filepath.Glob(filepath.Join(m.Root, "layers", "*.ztoc"))
				if err != nil || len(kept) != 1 {
					t.Fatalf("kept: %v, %v", kept, err)
				}
				if err := touch(kept[0]); err != nil {
					t.Fatal(err)
				}
				if !mounted {
					dir = m.mount(ref, "mnt")
				}
				compare(t, dir, image.tree(t))
				m.umount(dir)
			})
		}
	}
}
