package image

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// flipped is a blob in which a byte of each 4 KiB of [from, to) is another one.
func flipped(blob []byte, from, to int) []byte {
	wrong := bytes.Clone(blob)
	for at := from; at < to; at += 4096 {
		wrong[at] ^= 0x20
	}
	return wrong
}

// twins is two mounts of two registries with a layer in common: by two images that have
// it, or by one where the format's layers are an image's own.
type twins struct {
	*mounted
	registries [2]*ocitest.Registry
	images     [2]*packed
	dirs       [2]string
	files      []readable // of the layer
}

func newTwins(t *testing.T, f format) *twins {
	t.Helper()
	c := &twins{mounted: start(t, "deadline = \"20s\"\n")}
	members := []member{dir("data/")}
	for n := range 30 {
		members = append(members, file(fmt.Sprintf("data/%02d", n), string(toctest.Random(uint64(n), 200_000))))
	}
	lower := tarOf(t, members...)
	for n, name := range []string{"one", "two"} {
		c.registries[n] = ocitest.New(t)
		if f.soci > 0 {
			c.images[n] = f.packAll(t, lower)
			c.dirs[n] = mirrored(t, c.mounted, name, c.images[n], c.registries[n])
			continue
		}
		c.images[n] = f.packAll(t, lower, tarOf(t, file(name, name)))
		c.dirs[n] = c.mount(c.images[n].push(t, c.registries[n]), name)
	}
	for _, r := range filesOf(c.images[0].tree(t)) {
		if r.Path != "one" {
			c.files = append(c.files, r)
		}
	}
	return c
}

// lie has registry n send wrong bytes of the layer from now on.
func (c *twins) lie(n int) {
	blob := c.images[n].layers[0].blob
	c.registries[n].Blob(blob, serve(flipped(blob, 0, len(blob))))
}

// A registry that sends other bytes than those of the layer is found out by their
// digests, and they are read through the other image's registry.
func TestWrongBytesOfOneRegistryAreReadFromTheOther(t *testing.T) {
	for _, f := range []string{"estargz", "zstdchunked", "soci2"} {
		t.Run(f, func(t *testing.T) {
			c := newTwins(t, formatOf(f))
			c.lie(0)
			for n, dir := range c.dirs {
				sum := readOnce(t, dir, c.files[n*15:], 8)
				sum.wantRight(t)
			}
			if n := c.registries[1].Count(isRange); n == 0 {
				t.Error("the second registry was not asked")
			}
			c.Stop()
			c.WaitEnd(0)
		})
	}
}

// Where both send wrong bytes there is an error in time, which names both, and nothing
// is kept of them; when one of them is well again, all is right.
func TestWrongBytesOfBothRegistries(t *testing.T) {
	for _, f := range []string{"estargz", "zstdchunked", "soci2"} {
		t.Run(f, func(t *testing.T) {
			c := newTwins(t, formatOf(f))
			c.lie(0)
			c.lie(1)
			present := c.Status().Mounted[0].Layers[0].Present
			sum := readOnce(t, c.dirs[0], c.files, 4)
			if sum.EIO != int64(len(c.files)) || sum.Wrong+sum.Other > 0 || sum.Slowest > 20*time.Second {
				t.Errorf("%s\n%q", sum.String(), sum.Examples)
			}
			s := c.Status()
			if now := s.Mounted[0].Layers[0].Present; now != present {
				t.Errorf("%d bytes are present, %d were", now, present)
			}
			said := strings.Join(s.Errors, "\n")
			for _, r := range c.registries {
				if !strings.Contains(said, "wrong bytes came from") || !strings.Contains(said, r.Host()) {
					t.Errorf("status does not name %s:\n%s", r.Host(), said)
				}
			}
			blob := c.images[1].layers[0].blob
			c.registries[1].Blob(blob, serve(blob))
			instance.Eventually(t, 30*time.Second, func() error {
				if sum := readOnce(t, c.dirs[0], c.files, 2); sum.EIO+sum.Wrong+sum.Other > 0 {
					return fmt.Errorf("%s %q", sum.String(), sum.Examples)
				}
				return nil
			})
			c.Stop()
			c.WaitEnd(0)
		})
	}
}

// mirrored mounts an image by a name for which hosts.toml says the registry, and its
// mirrors.
func mirrored(t *testing.T, m *mounted, dir string, image *packed, own *ocitest.Registry, mirrors ...*ocitest.Registry) string {
	t.Helper()
	hosts := filepath.Join(m.Dir, "hosts-"+dir)
	text := fmt.Sprintf("server = \"http://%s\"\n", own.Host())
	_, name, _ := strings.Cut(image.push(t, own), "/")
	for _, r := range mirrors {
		text += fmt.Sprintf("[host.\"http://%s\"]\n", r.Host())
		image.push(t, r)
	}
	if err := os.MkdirAll(filepath.Join(hosts, "registry.test"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hosts, "registry.test", "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(m.Dir, dir)
	m.Lacuna("mount", "--hosts-dir", hosts, "registry.test/"+name, dir)
	return dir
}

// A mirror that sends wrong bytes is passed over, in whatever it sends them: what a
// mount reads of a layer, what is read later, or a layer that is downloaded whole.
func TestMirrorSendsWrongBytes(t *testing.T) {
	for _, name := range []string{"estargz", "zstdchunked", "soci2", "gzip"} {
		f := formatOf(name)
		for _, when := range []string{"from the first", "once it is mounted"} {
			if when != "from the first" && !f.indexed {
				continue // all of it is here by then
			}
			t.Run(name+"/"+when, func(t *testing.T) {
				m := start(t, "deadline = \"20s\"\n")
				own, mirror := ocitest.New(t), ocitest.New(t)
				image := f.packAll(t, tarOf(t, faultMembers(7)...), tarOf(t, file("small", "s")))
				blob := image.layers[0].blob
				lie := func() { mirror.Blob(blob, serve(flipped(blob, 0, len(blob)))) }
				if when == "from the first" {
					lie()
				}
				dir := mirrored(t, m, "mnt", image, own, mirror)
				lie()
				compare(t, dir, image.tree(t))
				if n := mirror.Count(func(q ocitest.Request) bool { return q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") }); n == 0 {
					t.Error("the mirror was not asked")
				}
				m.umount(dir)
			})
		}
	}
}

// An index that a mirror sends wrongly is not kept, and the registry's is.
func TestMirrorSendsAWrongIndex(t *testing.T) {
	f := formatOf("soci2")
	m := start(t, "deadline = \"20s\"\n")
	own, mirror := ocitest.New(t), ocitest.New(t)
	image := f.packAll(t, tarOf(t, faultMembers(8)...))
	image.push(t, ocitest.New(t)) // which makes the index
	z := image.ztocs[0]
	mirror.Blob(z, serve(flipped(z, len(z)/4, len(z)/2))) // in windows
	dir := mirrored(t, m, "mnt", image, own, mirror)
	compare(t, dir, image.tree(t))
	if l := m.Status().Mounted[0].Layers[0]; l.Format != "soci v2" {
		t.Errorf("the layer is %s", l.Format)
	}
	m.umount(dir)
}
