package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

var noDigest = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}

// sized is a tar whose one file's header says another size, as set writes it.
func sized(t testing.TB, set func(field []byte)) []byte {
	b := tarOf(t, file("file", "data"))
	set(b[124:136])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// hostileTars are layers that nobody may mount, over the layers that come before.
func hostileTars(t testing.TB) map[string][][]byte {
	deep := dir("d")
	deep.Name = strings.Repeat("d/", 3000)
	deep.Format = tar.FormatPAX
	return map[string][][]byte{
		"name with dots":             {tarOf(t, file("good", "x"), file("../etc/passwd", "x"))},
		"name with dots inside":      {tarOf(t, file("a/../b", "x"))},
		"absolute name with dots":    {tarOf(t, file("/../../b", "x"))},
		"link with dots":             {tarOf(t, file("a", "x"), hardLink("b", "../a"))},
		"whiteout with dots":         {tarOf(t, file("../.wh.etc", ""))},
		"whiteout of dots":           {tarOf(t, file(".wh...", ""))},
		"below a symlink":            {tarOf(t, symlink("d", "/etc"), file("d/passwd", "x"))},
		"below a symlink of below":   {tarOf(t, symlink("d", "/etc")), tarOf(t, file("d/passwd", "x"))},
		"directory below a symlink":  {tarOf(t, symlink("d", "/etc")), tarOf(t, dir("d/sub"))},
		"link below a symlink":       {tarOf(t, symlink("d", "/etc"), file("a", "x")), tarOf(t, hardLink("d/a", "a"))},
		"link through a symlink":     {tarOf(t, symlink("d", "/etc")), tarOf(t, hardLink("shadow", "d/shadow"))},
		"link to nothing":            {tarOf(t, hardLink("a", "nothing"))},
		"link to a directory":        {tarOf(t, dir("d"), hardLink("a", "d"))},
		"links in a circle":          {tarOf(t, hardLink("a", "b"), hardLink("b", "a"))},
		"component that is too long": {tarOf(t, file(strings.Repeat("n", 300), "x"))},
		"path that is too long":      {tarOf(t, deep)},
		"negative size":              {sized(t, func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, 12)) })},
		"enormous size":              {sized(t, func(b []byte) { copy(b, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") })},
		"size beyond the end":        {sized(t, func(b []byte) { copy(b, "77777777777\x00") })},
		"size that is no number":     {sized(t, func(b []byte) { copy(b, "12x45678901\x00") })},
		"tar that ends in a header":  {tarOf(t, file("a", "x"))[:300]},
		"tar that ends in a file":    {tarOf(t, file("a", string(make([]byte, 5000))))[:2000]},
		"no tar":                     {bytes.Repeat([]byte("no tar "), 1000)},
	}
}

// refused wants that the image cannot be mounted, with one of the statuses, a
// message that says what, and nothing left but layers that are right: fewer than it has.
func (m *mounted) refused(image *packed, ref, what string, statuses ...int) {
	m.t.Helper()
	before, objects := m.left()
	dir := filepath.Join(m.Dir, "refused")
	out, err := m.Try("mount", ref, dir)
	if err == nil {
		m.t.Errorf("it is mounted: %s", out)
		m.umount(dir)
		return
	}
	text := err.Error()
	if status := instance.ExitOf(err); !slices.Contains(statuses, status) || !strings.Contains(text, what) {
		m.t.Errorf("exit status %d, want %v; %q in %s", status, statuses, what, text)
	}
	if first, _, _ := strings.Cut(text, "\n"); len(first) > 1500 {
		m.t.Errorf("a message of %d bytes", len(first))
	}
	m.wantNothing(dir)
	after, now := m.left()
	if after != before {
		m.t.Errorf("left in the cache:\n%s\nbefore:\n%s", after, before)
	}
	if now-objects >= len(image.layers) {
		m.t.Errorf("%d objects more, of %d layers", now-objects, len(image.layers))
	}
}

// left is what lies in the cache root, and how many objects, which are not in it.
func (m *mounted) left() (names string, objects int) {
	m.t.Helper()
	var all []string
	err := filepath.WalkDir(m.Root, func(path string, _ os.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, m.Root)
		switch parts := strings.Split(rel, "/"); {
		case err != nil:
			return err
		case len(parts) == 4 && parts[1] == "objects" && len(parts[3]) == 64:
			objects++
			return filepath.SkipDir
		case len(parts) == 3 && parts[1] == "objects" && len(parts[2]) == 2, strings.HasSuffix(rel, ".toc"):
		default:
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.Join(all, "\n"), objects
}

func TestHostileLayersAreRefused(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	for name, tars := range hostileTars(t) {
		for _, f := range []format{formatOf("gzip"), formatOf("tar")} {
			t.Run(name+"/"+f.name, func(t *testing.T) {
				m := &mounted{m.For(t), t}
				image := f.packAll(t, tars...)
				m.refused(image, image.push(t, r), "layer", 1, 4)
			})
		}
	}
	dir := m.mount(formatOf("gzip").packAll(t, tarOf(t, symlink("absolute", "/etc/passwd"))).push(t, r), "mnt")
	if link, err := os.Readlink(filepath.Join(dir, "absolute")); err != nil || link != "/etc/passwd" {
		t.Errorf("%q, %v", link, err)
	}
	m.umount(dir)
}

// What does not have the digest that the manifest says is corrupt: status 4.
func TestWrongDigestsAreRefused(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	for _, f := range formats {
		data := tarOf(t, file("file", string(toctest.Random(20, 100_000))))
		if !f.indexed {
			t.Run("diff id/"+f.name, func(t *testing.T) {
				m := &mounted{m.For(t), t}
				image := f.packAll(t, data)
				image.layers[0].diffID = noDigest
				image.build(t)
				m.refused(image, image.push(t, r), "DiffID", 4)
			})
			t.Run("blob/"+f.name, func(t *testing.T) {
				m, r := &mounted{m.For(t), t}, ocitest.New(t)
				image := f.packAll(t, data, tarOf(t, file("other", "x")))
				ref := image.push(t, r)
				other := bytes.Clone(image.layers[0].blob)
				other[len(other)/2] ^= 1
				r.Blob(image.layers[0].blob, serve(other))
				m.refused(image, ref, "layer 1", 4)
			})
		} else if f.soci == 0 {
			t.Run("table of contents/"+f.name, func(t *testing.T) {
				m := &mounted{m.For(t), t}
				image := f.packAll(t, data)
				wrong := maps.Clone(image.layers[0].annotations)
				for key := range wrong {
					if strings.Contains(key, "digest") || strings.Contains(key, "checksum") {
						wrong[key] = noDigest.String()
					}
				}
				image.layers[0].annotations = wrong
				image.build(t)
				m.refused(image, image.push(t, r), "table of contents", 4)
			})
		}
		t.Run("truncated/"+f.name, func(t *testing.T) {
			m, r := &mounted{m.For(t), t}, ocitest.New(t)
			image := f.packAll(t, data)
			ref := image.push(t, r)
			r.Blob(image.layers[0].blob, serve(image.layers[0].blob[:len(image.layers[0].blob)/2]))
			m.refused(image, ref, "layer", 4, 5)
		})
		if f.soci > 0 {
			continue // no zTOC can be made of it
		}
		t.Run("truncated with its digest/"+f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := f.packAll(t, data)
			image.layers[0].blob = image.layers[0].blob[:len(image.layers[0].blob)/2]
			image.build(t)
			m.refused(image, image.push(t, r), "layer", 1, 4)
		})
	}
}

func serve(data []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		http.ServeContent(w, q, "", noon, bytes.NewReader(data))
	})
}

// A chunk that does not have its digest is EIO for the file that it is part of,
// and no other byte than those of the layer is ever read.
func TestWrongChunkIsAnErrorForItsFileAlone(t *testing.T) {
	for _, f := range []format{formatOf("estargz"), formatOf("zstdchunked")} {
		t.Run(f.name, func(t *testing.T) {
			good, bad := toctest.Random(30, 1<<20), toctest.Random(31, 1<<20)
			image := f.packAll(t, tarOf(t, file("a", string(good)), file("b", string(bad)), file("c", string(good[:5000]))))
			tree := image.tree(t)
			// Data that does not compress is in the blob as it is.
			at := bytes.Index(image.layers[0].blob, bad[600_000:600_064])
			if at < 0 {
				t.Fatal("the data is not in the blob")
			}
			image.layers[0].blob = bytes.Clone(image.layers[0].blob)
			image.layers[0].blob[at+10] ^= 0x20
			image.build(t)
			m := start(t, "deadline = \"2s\"\nstall = \"1s\"\n")
			dir := m.mount(image.push(t, ocitest.New(t)), "mnt")
			files := filesOf(tree)
			sum := readOnce(t, dir, files, 3)
			if sum.Wrong+sum.Other > 0 || sum.EIO != 1 || !strings.Contains(fmt.Sprint(sum.Examples), "/b:") {
				t.Errorf("%s %q", sum.String(), sum.Examples)
			}
			sum = readOnce(t, dir, files, 1) // again, and in order
			if sum.Wrong+sum.Other > 0 || sum.EIO != 1 {
				t.Errorf("%s %q", sum.String(), sum.Examples)
			}
			f, err := os.Open(filepath.Join(dir, "b"))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 200_000) // which other chunks hold
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, bad[:len(got)]) {
				t.Errorf("before the wrong chunk: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			m.umount(dir)
		})
	}
}

// Landmarks and the order of prioritized files change nothing of the tree.
func TestPrioritizedFiles(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	f := formatOf("estargz")
	f.pack = func(t testing.TB, tar []byte) *layer {
		l := packEStargz(t, tar)
		blob, d := buildStargz(t, tar, stargz.WithPrioritizedFiles([]string{"z", "d/b"}), stargz.WithMinChunkSize(50_000))
		l.blob, l.annotations = blob, map[string]string{tocDigest: d}
		l.tar = decompress(t, blob)
		return l
	}
	image := f.packAll(t, tarOf(t, dir("d"), file("d/a", "a"), file("d/b", string(toctest.Text(100_000))), hardLink("l", "d/b"), file("z", "z")))
	m.wantSame(image.push(t, r), image.tree(t))
}
