package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// The tests here go both ways between Lacuna and SOCI itself
// (github.com/awslabs/soci-snapshotter) over registries. That both make the same bytes
// of the same layers is internal/toc/soci's to show.

func digestOf(data []byte) digest.Digest { return digest.FromBytes(data) }

// packMembers packs a tar as a layer of several gzip members.
func packMembers(t testing.TB, plain []byte) *layer {
	t.Helper()
	var b bytes.Buffer
	for part := range slices.Chunk(plain, 1_000_001) {
		w := gzip.NewWriter(&b)
		_, err := w.Write(part)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return &layer{blob: b.Bytes(), tar: plain, mediaType: types.OCILayer}
}

// forSOCI is an image of three layers: of random bytes, of many small files of text
// with links, of several gzip members.
func forSOCI(t testing.TB) *packed {
	t.Helper()
	members := []member{dir("text/"), pax("text/attributes", "x", map[string]string{"SCHILY.xattr.user.a": "b"})}
	for n := range 300 {
		members = append(members, file(fmt.Sprintf("text/%03d", n), string(toctest.Text(n*n%9000))))
	}
	members = append(members, symlink("text/link", "001"), hardLink("text/same", "text/002"), file("text/"+strings.Repeat("long", 50), "name"))
	tars := stormTars(t, 8)
	p := formatOf("gzip").packAll(t, tars[0], tarOf(t, members...))
	p.layers = append(p.layers, packMembers(t, tars[1]))
	p.build(t)
	return p
}

// regularFile is one of a layer.
type regularFile struct {
	name string
	data []byte
}

// regular are the regular files of a tar.
func regular(t testing.TB, plain []byte) (list []regularFile) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, regularFile{h.Name, data})
	}
}

// What soci create and soci push, and soci convert and a push by containerd, put into a
// registry, is what an image is mounted by.
func TestIndicesThatSOCIPushed(t *testing.T) {
	m, w := start(t, ""), newSOCIWorld(t)
	for kind, host := range registries {
		t.Run(kind, func(t *testing.T) {
			m, w := &mounted{m.For(t), t}, w.in(t, "containerd")
			image := forSOCI(t)
			tree := image.tree(t)
			ref := image.pushTo(t, host(t))
			w.run(w.client, "fetch", w.socket, ref)
			sizes := []string{"--span-size", "65536", "--min-layer-size", "0"}
			w.soci(append(append([]string{"create"}, sizes...), ref)...)
			w.soci("push", "--plain-http", ref)
			second := strings.TrimSuffix(ref, "plain") + "converted"
			w.soci(append(append([]string{"convert"}, sizes...), ref, second)...)
			w.run(w.client, "push", w.socket, second)
			m.wantIndexed(ref, "soci v1", tree)
			m.wantIndexed(second, "soci v2", tree)
		})
	}
}

// wantIndexed mounts an image by its index, and compares it with the tree.
func (m *mounted) wantIndexed(ref, format string, tree *node) {
	m.t.Helper()
	dir := m.mount(ref, "mnt")
	for _, f := range m.formatsOf() {
		if f != format {
			m.t.Errorf("layer is %s, not %s", f, format)
		}
	}
	files, size := compare(m.t, dir, tree)
	m.t.Logf("%s: %d names, %d bytes equal", format, files, size)
	m.umount(dir)
}

// So is what soci convert writes without containerd.
func TestLayoutThatSOCIConverted(t *testing.T) {
	m := start(t, "")
	tool := ocitest.Tool(t, "soci", "soci", "github.com/awslabs/soci-snapshotter/cmd/soci", "CGO_ENABLED=1")
	image := forSOCI(t)
	from, to := filepath.Join(m.Dir, "from"), filepath.Join(m.Dir, "to")
	path, err := layout.Write(from, empty.Index)
	if err == nil {
		err = path.AppendImage(image.Image)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, tool, "convert", "--standalone", "--format", "oci-dir", "--span-size", "65536", "--min-layer-size", "0", from, to)
	m.wantIndexed("oci-layout:"+to, "soci v2", image.tree(t))
}

// getFiles is how many files soci ztoc get-file reads of each image, three of them.
const getFiles = 67

// What lacuna index puts into a registry is what SOCI's snapshotter finds and mounts
// layers by, and what SOCI's tool accepts and reads files with.
func TestIndicesForSOCI(t *testing.T) {
	m, w := start(t, ""), newSOCIWorld(t)
	for kind, host := range registries {
		t.Run("v1/"+kind, func(t *testing.T) { indexForSOCI(t, m, w.in(t, "soci"), "v1", host) })
	}
	t.Run("v2", func(t *testing.T) { indexForSOCI(t, m, w.in(t, "soci"), "v2", registries["tag"]) })
}

func indexForSOCI(t *testing.T, m *mounted, w *sociWorld, version string, host func(testing.TB) string) {
	t.Helper()
	m = &mounted{m.For(t), t}
	image := forSOCI(t)
	ref := image.pushTo(t, host(t))
	m.Lacuna("index", "--span-size", "64KiB", "--min-layer-size", "0B", "--"+version, "--push", ref)
	if version == "v2" {
		ref += "-soci"
	}
	d, manifest := imageOf(t, ref)
	w.lazily(ref, d.Digest.String(), version, image.digests(t), func(dir string) {
		t.Logf("SOCI's snapshotter: %d files equal", image.layersAt(t, dir))
	})
	// What it fetched is now where its tool looks.
	w.run(w.client, "fetch", w.socket, ref)
	if version == "v1" {
		w.soci("rebuild-db")
	} else {
		w.run(w.client, "register", w.root, manifest.Annotations["com.amazon.soci.index-digest"], d.Digest.String())
	}
	w.wantIndex(image, ref, version)
}

// wantIndex asks SOCI's tool of the index of the image.
func (w *sociWorld) wantIndex(image *packed, ref, version string) {
	w.t.Helper()
	if out := w.soci("index", "list", "--ref", ref); !strings.Contains(out, version) {
		w.t.Errorf("index list says:\n%s", out)
	}
	indices := strings.Fields(w.soci("index", "list", "--quiet"))
	if len(indices) != 1 {
		w.t.Fatalf("indices: %v", indices)
	}
	var index ocispec.Manifest
	if err := json.Unmarshal([]byte(w.soci("index", "info", indices[0])), &index); err != nil || len(index.Layers) != len(image.layers) {
		w.t.Fatalf("index of %d layers: %v", len(index.Layers), err)
	}
	if list := w.soci("ztoc", "list"); strings.Count(list, "sha256:") != 2*len(image.layers) {
		w.t.Errorf("ztoc list says:\n%s", list)
	}
	layers := image.digests(w.t)
	var files []regularFile
	from := make(map[int]string) // which zTOC a file is in
	for n, z := range index.Layers {
		if of := z.Annotations["com.amazon.soci.image-layer-digest"]; of != layers[n] {
			w.t.Errorf("zTOC %d is of %s, not %s", n, of, layers[n])
		}
		all := regular(w.t, image.layers[n].tar)
		w.wantInfo(z.Digest.String(), all)
		for _, f := range all {
			from[len(files)] = z.Digest.String()
			files = append(files, f)
		}
	}
	rng := instance.Rand(w.t)
	for range getFiles {
		n := rng.IntN(len(files))
		if got := w.soci("ztoc", "get-file", from[n], files[n].name); got != string(files[n].data)+"\n" {
			w.t.Errorf("get-file %s: %d bytes, want %d", files[n].name, len(got), len(files[n].data)+1)
		}
	}
}

// wantInfo wants soci ztoc info to tell of these regular files.
func (w *sociWorld) wantInfo(ztoc string, files []regularFile) {
	w.t.Helper()
	var info struct {
		Tool  string `json:"build_tool"`
		Spans int    `json:"num_spans"`
		Files []struct {
			Filename string
			Size     int64
			Type     string
		}
	}
	if err := json.Unmarshal([]byte(w.soci("ztoc", "info", ztoc)), &info); err != nil {
		w.t.Fatal(err)
	}
	if info.Tool != "Lacuna 1" || info.Spans < 2 {
		w.t.Errorf("zTOC by %q of %d spans", info.Tool, info.Spans)
	}
	for _, f := range info.Files {
		if f.Type != "reg" {
			continue
		}
		if len(files) == 0 || f.Filename != files[0].name || f.Size != int64(len(files[0].data)) {
			w.t.Fatalf("ztoc info tells of %s of %d bytes; %d files are to come", f.Filename, f.Size, len(files))
		}
		files = files[1:]
	}
	if len(files) > 0 {
		w.t.Errorf("ztoc info does not tell of %s", files[0].name)
	}
}
