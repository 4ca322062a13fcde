package soci_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// The tests here compare with SOCI itself (github.com/awslabs/soci-snapshotter), as
// pinned in tools/soci/go.mod. The first build takes minutes.

const sociTool = "AWS SOCI CLI v0.2"

// runSOCI runs a program of tools/soci in UTC: it writes times in local time.
func runSOCI(t *testing.T, in string, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	cmd.Stdin = strings.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, stderr.String())
	}
	return string(out)
}

func files(t *testing.T) string { return ocitest.Tool(t, "soci", "soci-files", ".", "CGO_ENABLED=1") }

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// manyFiles is a layer of some 9 MB whose files have many sizes.
func manyFiles(t *testing.T) []byte {
	list := toctest.Torture()
	for i := range 250 {
		data := toctest.Text(i * i % 15_000)
		if i%10 == 0 {
			data = toctest.Random(uint64(i), i*100)
		}
		list = append(list, toctest.Reg(fmt.Sprintf("many/%d", i), data))
	}
	return toctest.Tar(t, append(list, toctest.Reg("large", toctest.Text(4<<20))))
}

func TestZtocsAreThoseOfSOCI(t *testing.T) {
	program, dir := files(t), t.TempDir()
	plain := manyFiles(t)
	layers := map[string][]byte{
		"stored blocks": zip(t, plain, 0), "fast": zip(t, plain, 1), "best": zip(t, plain, 9), "huffman": zip(t, plain, -2),
		"members": zip(t, plain, 6, 1, 0, 0, 100_000, 300_000, 3<<20), "uncompressed": plain,
	}
	for name, layer := range layers {
		t.Run(name, func(t *testing.T) {
			algorithm, stored := "gzip", name == "uncompressed"
			if stored {
				algorithm = "uncompressed"
			}
			path := write(t, dir, name, layer)
			spans := []int64{150_000}
			if name == "fast" {
				spans = append(spans, soci.DefaultSpanSize)
			}
			for _, span := range spans {
				runSOCI(t, "", program, "ztoc", path, fmt.Sprint(span), algorithm, path+".ztoc")
				want, err := os.ReadFile(path + ".ztoc")
				if err != nil {
					t.Fatal(err)
				}
				got := build(t, layer, soci.BuildOptions{SpanSize: span, Tool: sociTool, Stored: stored})
				if !bytes.Equal(got, want) {
					t.Errorf("spans of %d: other bytes (%d, SOCI has %d)", span, len(got), len(want))
				}
				zt, b := open(t, want, len(layer))
				tc, err := zt.TOC()
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(tc, scanned(t, layer)) {
					t.Error("not what a scan finds")
				}
				t.Logf("spans of %d: %d files, %d spans, metadata %d of %d bytes", span, len(zt.Files), zt.Spans.Count(), b.Sent.Load(), len(want))
			}
		})
	}
}

func TestSOCIReadsFilesWithOurZtoc(t *testing.T) {
	program, dir := files(t), t.TempDir()
	plain := manyFiles(t)
	for name, layer := range map[string][]byte{"one": zip(t, plain, 6), "members": zip(t, plain, 6, 1, 500_000, 3<<20)} {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		z := build(t, layer, soci.BuildOptions{SpanSize: 200_000, Tool: "Lacuna"})
		path, ztoc := write(t, dir, name, layer), write(t, dir, name+".ztoc", z)
		if info := runSOCI(t, "", program, "info", ztoc); !strings.Contains(info, `"tool":"Lacuna"`) {
			t.Errorf("info: %s", info)
		}
		var names, want strings.Builder
		zt, _ := open(t, z, len(layer))
		for n := 0; n < 200; {
			f := zt.Files[rng.IntN(len(zt.Files))]
			if f.Type != "reg" || strings.ContainsAny(f.Name, "\n") {
				continue
			}
			n++
			fmt.Fprintln(&names, f.Name)
			fmt.Fprintf(&want, "%s %d %s\n", digestOf(plain[f.Off:][:f.Size])[7:], f.Size, f.Name)
		}
		if got := runSOCI(t, names.String(), program, "get", path, ztoc); got != want.String() {
			t.Errorf("%s: other files:\n%s\nwant\n%s", name, got, want.String())
		}
	}
}

// layout writes an OCI layout of one image with these layers, and returns the
// descriptor of its manifest.
func layout(t *testing.T, dir string, layers ...[]byte) v1.Descriptor {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(kind string, data []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: kind, Digest: digest.FromBytes(data), Size: int64(len(data))}
		write(t, filepath.Join(dir, "blobs", "sha256"), d.Digest.Encoded(), data)
		return d
	}
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range layers {
		m.Layers = append(m.Layers, put(v1.MediaTypeImageLayerGzip, l))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l)) // nobody looks
	}
	m.Config = put(v1.MediaTypeImageConfig, marshal(config))
	d := put(v1.MediaTypeImageManifest, marshal(m))
	write(t, dir, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, dir, "index.json", marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d},
	}))
	return d
}

func blobOf(t *testing.T, layout string, d digest.Digest) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(layout, "blobs", "sha256", d.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// indexOf makes the index of these layers as SOCI should; those below least get
// no zTOC.
func indexOf(t *testing.T, least int, layers ...[]byte) *soci.Index {
	t.Helper()
	x := &soci.Index{Version: 2, Tool: sociTool}
	for _, l := range layers {
		if len(l) < least {
			continue
		}
		z := build(t, l, soci.BuildOptions{SpanSize: 1 << 20, Tool: sociTool})
		x.Layers = append(x.Layers, soci.LayerZtoc{
			Layer: digest.FromBytes(l), MediaType: v1.MediaTypeImageLayerGzip, Ztoc: digest.FromBytes(z), Size: int64(len(z)), SpanSize: 1 << 20,
		})
	}
	return x
}

func marshal(t *testing.T, x *soci.Index) []byte {
	t.Helper()
	data, err := x.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestIndexOfVersion1IsThatOfSOCI(t *testing.T) {
	program, in, out := files(t), t.TempDir(), t.TempDir()
	small, large := zip(t, toctest.Tar(t, toctest.Torture()[:3]), 6), zip(t, manyFiles(t), 6)
	image := layout(t, in, small, large)
	made := digest.Digest(lastLine(runSOCI(t, "", program, "create", in, fmt.Sprint(1<<20), "100000", out)))

	x := indexOf(t, 100_000, small, large)
	x.Version, x.Subject = 1, &image
	want := blobOf(t, out, made)
	if got := marshal(t, x); !bytes.Equal(got, want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
	got, err := soci.ParseIndex(want)
	if err != nil || got.Subject.Digest != image.Digest || !reflect.DeepEqual(got.Layers, x.Layers) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, ok := got.Find(digest.FromBytes(small)); ok {
		t.Error("the small layer has a zTOC")
	}
	z, ok := got.Find(digest.FromBytes(large))
	if !ok {
		t.Fatal("the large layer has no zTOC")
	}
	open(t, blobOf(t, out, z.Ztoc), len(large))
}

func TestIndexOfVersion2IsThatOfSOCI(t *testing.T) {
	program := ocitest.Tool(t, "soci", "soci", "github.com/awslabs/soci-snapshotter/cmd/soci", "CGO_ENABLED=1")
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	small, large := zip(t, toctest.Tar(t, toctest.Torture()[:3]), 6), zip(t, manyFiles(t), 6)
	image := layout(t, in, small, large)
	runSOCI(t, "", program, "convert", "--standalone", "--format", "oci-dir", "--span-size", fmt.Sprint(1<<20),
		"--min-layer-size", "100000", in, out)

	x := indexOf(t, 100_000, small, large)
	data := marshal(t, x)
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	single := image
	single.Platform = &platform
	index, manifests, err := soci.Enable(v1.Index{Manifests: []v1.Descriptor{single}},
		func(d v1.Descriptor) ([]byte, error) { return blobOf(t, in, d.Digest), nil },
		[]soci.Made{{Manifest: image.Digest, Platform: platform, Descriptor: x.Descriptor(data)}})
	if err != nil {
		t.Fatal(err)
	}
	var top v1.Index
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(out, "index.json"))), &top); err != nil || len(top.Manifests) != 1 {
		t.Fatal(top, err)
	}
	want := blobOf(t, out, top.Manifests[0].Digest)
	if !bytes.Equal(index, want) {
		t.Errorf("got %s\nwant %s", index, want)
	}
	for _, data := range append(manifests, data) {
		if !bytes.Equal(blobOf(t, out, digest.FromBytes(data)), data) {
			t.Errorf("%s is another", digest.FromBytes(data))
		}
	}
	named, err := soci.IndexDigest(manifests[0])
	if err != nil || named != digest.FromBytes(data) {
		t.Errorf("the manifest names %s: %v", named, err)
	}
	open(t, blobOf(t, out, x.Layers[0].Ztoc), len(large))
}

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
