package image

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/internal/zran"
)

// changed is a zTOC of a layer of that size that says something else.
func changed(t testing.TB, z []byte, layer int64, change func(*soci.Ztoc)) []byte {
	t.Helper()
	blob := &toctest.Blob{Bytes: z}
	read, err := soci.Open(t.Context(), blob, layer)
	if err != nil {
		t.Fatal(err)
	}
	r, err := soci.NewReader(read.Spans, blob)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := r.Load(t.Context(), 0, read.Spans.Count())
	if err != nil {
		t.Fatal(err)
	}
	var points []zran.Checkpoint
	for _, s := range spans {
		points = append(points, s.Checkpoint)
	}
	change(read)
	if z, err = soci.Marshal(read, points); err != nil {
		t.Fatal(err)
	}
	return z
}

// of is the file of that name in a zTOC.
func of(t testing.TB, z *soci.Ztoc, name string) *soci.File {
	t.Helper()
	i := slices.IndexFunc(z.Files, func(f soci.File) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no %s", name)
	}
	return &z.Files[i]
}

// lies are what a zTOC can say of where files lie that is not so, and the files that
// cannot be read then. Of what is refused at once nothing is lost: the layer is scanned.
func lies(t testing.TB) map[string]struct {
	lie  func(z *soci.Ztoc)
	lost []string
} {
	named := func(z *soci.Ztoc, name string) *soci.File { return of(t, z, name) }
	swap := func(z *soci.Ztoc, a, b string) {
		x, y := named(z, a), named(z, b)
		*x, *y = *y, *x
		x.Off, y.Off = y.Off, x.Off
	}
	return map[string]struct {
		lie  func(z *soci.Ztoc)
		lost []string
	}{
		"nothing": {lie: func(*soci.Ztoc) {}},
		"each has the other's data": {
			lie: func(z *soci.Ztoc) { swap(z, "a", "b") }, lost: []string{"a", "b"},
		},
		"and the other's size": {
			lie: func(z *soci.Ztoc) {
				swap(z, "a", "large")
				a, large := named(z, "a"), named(z, "large")
				a.Size, large.Size = large.Size, a.Size
			},
			lost: []string{"a", "large"},
		},
		"a block too late": {
			lie:  func(z *soci.Ztoc) { f := named(z, "large"); f.Off, f.Size = f.Off+512, f.Size-512 },
			lost: []string{"large"},
		},
		"a block too early": {
			lie:  func(z *soci.Ztoc) { named(z, "owned").Off -= 512 },
			lost: []string{"owned", "small"},
		},
		"too small": {
			lie:  func(z *soci.Ztoc) { named(z, "large").Size -= 10 },
			lost: []string{"large"},
		},
		"too large": {
			lie:  func(z *soci.Ztoc) { named(z, "large").Size += 10 },
			lost: []string{"large"},
		},
		"half of it": {
			lie:  func(z *soci.Ztoc) { named(z, "large").Size /= 2 },
			lost: []string{"large", "behind"},
		},
		"another's name": {
			lie:  func(z *soci.Ztoc) { named(z, "b").Name = "passwd" },
			lost: []string{"passwd"},
		},
		"a file that is left out": {
			lie: func(z *soci.Ztoc) {
				z.Files = slices.DeleteFunc(z.Files, func(f soci.File) bool { return f.Name == "b" })
			},
			lost: []string{"c"},
		},
		"two in one place": { // refused
			lie: func(z *soci.Ztoc) { named(z, "b").Off = named(z, "a").Off },
		},
		"over the end": { // refused
			lie: func(z *soci.Ztoc) { named(z, "end").Size += 10 << 20 },
		},
	}
}

// liedOf are files whose headers are of all forms.
func liedOf(t testing.TB) []byte {
	owned := file("owned", string(toctest.Random(44, 700)))
	owned.Format, owned.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.user.a": "b"}
	long := file(strings.Repeat("l/", 100)+"long", string(toctest.Random(45, 9000)))
	long.Format = tar.FormatGNU
	return tarOf(t, dir("d"), file("a", string(toctest.Random(40, 3000))), file("b", string(toctest.Random(41, 3000))),
		file("c", string(toctest.Random(42, 3000))), symlink("d/link", "../a"),
		file("large", string(toctest.Random(43, 400_001))), file("behind", "behind"), hardLink("d/hard", "a"), owned, file("small", "small"),
		long, file("end", string(toctest.Text(200_000))))
}

// A zTOC that lies about where files lie costs the files of which it does, and shows of
// none the bytes of another: whether they are begun at their start or in their middle.
func TestZtocThatLiesAboutOffsets(t *testing.T) {
	m := start(t, "")
	for name, c := range lies(t) {
		t.Run(name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := formatOf("soci2").packAll(t, liedOf(t))
			image.lie = c.lie
			ref := image.push(t, ocitest.New(t))
			tree := image.tree(t)
			for _, middle := range []bool{true, false} {
				dir := m.mount(ref, "mnt")
				wantOrEIO(t, dir, tree, c.lost, middle)
				m.umount(dir)
				m.forget()
			}
		})
	}
}

// forget takes all objects out of the cache, so that everything is fetched again.
func (m *mounted) forget() {
	m.t.Helper()
	objects, err := filepath.Glob(filepath.Join(m.Root, "objects", "*", "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, path := range objects {
		if err := os.RemoveAll(path); err != nil {
			m.t.Fatal(err)
		}
	}
}

// wantOrEIO wants EIO of the lost files, and the bytes of the tree of all others. middle:
// each is begun in its middle.
func wantOrEIO(t *testing.T, dir string, tree *node, lost []string, middle bool) {
	t.Helper()
	files := filesOf(tree)
	for _, name := range lost {
		if !slices.ContainsFunc(files, func(f readable) bool { return f.Path == name }) {
			files = append(files, readable{Path: name, Size: 1})
		}
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue // the zTOC has not got it
		}
		got, err := readFrom(path, middle)
		switch {
		case slices.Contains(lost, f.Path) || f.Path == "d/hard" && slices.Contains(lost, "a"):
			if !errors.Is(err, syscall.EIO) || len(got) > 0 {
				t.Errorf("%s: %d bytes, %v", f.Path, len(got), err)
			}
		case err != nil || sha256.Sum256(got) != f.Sum:
			t.Errorf("%s: %d of %d bytes are others, %v", f.Path, len(got), f.Size, err)
		}
	}
}

// readFrom reads a file whole, after its middle where that is to be the first.
func readFrom(path string, middle bool) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if st, err := f.Stat(); err != nil || middle && st.Size() > 0 {
		if err != nil {
			return nil, err
		}
		if _, err := f.ReadAt(make([]byte, 1), st.Size()/2); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(f)
}
