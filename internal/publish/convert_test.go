package publish_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/estargz"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/internal/toc/zstdchunked"
)

// layersOf are the layers of the image that ref names, with their bytes.
func layersOf(t *testing.T, ref string) (layers []oci.Layer, blobs [][]byte) {
	t.Helper()
	img, err := oci.Open(t.Context(), ref, options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, l := range img.Layers {
		b, err := l.Blob(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.ReadRange(t.Context(), 0, b.Size())
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if l.Digest.Algorithm().FromBytes(data) != l.Digest {
			t.Fatalf("layer %s has other bytes", l.Digest)
		}
		layers, blobs = append(layers, l), append(blobs, data)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	return layers, blobs
}

// wantTree wants each layer to be read in the format, by its annotations and verified by
// them, as who mounts it does, and to have what its tar had.
func wantTree(t *testing.T, ref string, format publish.Format, tars [][]byte) {
	t.Helper()
	layers, blobs := layersOf(t, ref)
	if len(layers) != len(tars) {
		t.Fatalf("%d layers, want %d", len(layers), len(tars))
	}
	for i, l := range layers {
		read, other := estargz.Read, "zstd-chunked"
		if format == publish.ZstdChunked {
			read, other = zstdchunked.Read, "no such thing"
		}
		got, err := read(t.Context(), &toc.Layer{Blob: &toctest.Blob{Bytes: blobs[i]}, Annotations: l.Annotations})
		if err != nil {
			t.Errorf("layer %d: %v", i, err)
			continue
		}
		if !got.Verified {
			t.Errorf("layer %d: nothing says what its table of contents is", i)
		}
		toctest.Compare(t, toctest.Got(t, got.TOC, blobs[i]), toctest.Want(t, tars[i], toctest.Loss{Fractions: true, Bytes: true}))
		for k, v := range l.Annotations {
			if strings.Contains(k, other) || strings.HasPrefix(k, "com.amazon.soci.") || k == "containerd.io/uncompressed" {
				t.Errorf("layer %d still says %s=%s", i, k, v)
			}
		}
		if l.Annotations["mine"] != fmt.Sprint(i) {
			t.Errorf("layer %d has lost an annotation: %v", i, l.Annotations)
		}
	}
}

// tortured is an image of gzip layers with what layers can have, and annotations of
// every kind that speak of other bytes.
func tortured(t *testing.T) (img gcr.Image, tars [][]byte) {
	t.Helper()
	img = ocitest.ImageFor(t, gcr.Platform{OS: "linux", Architecture: "amd64"})
	for n, list := range [][]toctest.File{toctest.Torture(), {toctest.Reg("a", toctest.Random(1, 200_000)), toctest.Reg("b", nil)}} {
		tar := toctest.Tar(t, list)
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: gzipLayer{static.NewLayer(packed(t, tar), types.OCILayer), tar}, MediaType: types.OCILayer,
			Annotations: map[string]string{
				"mine": fmt.Sprint(n), "containerd.io/uncompressed": "sha256:1",
				"com.amazon.soci.index-digest":                        "sha256:2",
				"io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, tar)
	}
	return img, tars
}

// From each format to each other, and back, the files are the same, and nothing is left
// that speaks of what was before.
func TestConvertFromEachToEach(t *testing.T) {
	r := ocitest.New(t)
	img, tars := tortured(t)
	ref := r.Push(t, "app:gzip", img)
	for n, to := range []publish.Format{publish.ZstdChunked, publish.EStargz, publish.ZstdChunked, publish.EStargz, publish.EStargz} {
		o := publish.ConvertOptions{To: to, Tag: fmt.Sprint("step", n), TempDir: t.TempDir()}
		made, err := publish.Convert(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o)
		if err != nil {
			t.Fatal(err)
		}
		if kept := made.Images[0].Kept; (kept == len(tars)) != (n == 4) {
			t.Errorf("step %d: %d layers are kept", n, kept)
		}
		ref = r.Host() + "/app:" + o.Tag
		t.Run(fmt.Sprint(n, " to ", to), func(t *testing.T) { wantTree(t, ref, to, tars) })
	}
}

// renamed is an image whose layers have other annotations.
func renamed(t *testing.T, ref string, rename func(map[string]string) map[string]string) gcr.Image {
	t.Helper()
	layers, blobs := layersOf(t, ref)
	img := ocitest.ImageFor(t, gcr.Platform{OS: "linux", Architecture: "amd64"})
	for i, l := range layers {
		kind := types.MediaType(l.MediaType)
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: named{static.NewLayer(blobs[i], kind), l.DiffID.String()}, MediaType: kind, Annotations: rename(maps.Clone(l.Annotations)),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// named is a layer of which only the DiffID's name is known.
type named struct {
	gcr.Layer
	diffID string
}

func (l named) DiffID() (gcr.Hash, error) { return gcr.NewHash(l.diffID) }

// What podman has made is zstd:chunked already; converted, it says so no more.
func TestConvertPodmans(t *testing.T) {
	r := ocitest.New(t)
	img, tars := tortured(t)
	ref := r.Push(t, "app:gzip", img)
	convert := func(ref, tag string, to publish.Format, kept int) {
		t.Helper()
		o := publish.ConvertOptions{To: to, Tag: tag, TempDir: t.TempDir()}
		made, err := publish.Convert(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o)
		if err != nil {
			t.Fatal(err)
		}
		if made.Images[0].Kept != kept {
			t.Errorf("%s: %d layers are kept, want %d", tag, made.Images[0].Kept, kept)
		}
		wantTree(t, r.Host()+"/app:"+tag, to, tars)
	}
	convert(ref, "chunked", publish.ZstdChunked, 0)
	podmans := renamed(t, r.Host()+"/app:chunked", func(a map[string]string) map[string]string {
		to := make(map[string]string)
		for k, v := range a {
			if rest, ok := strings.CutPrefix(k, "io.containers."); ok && strings.HasPrefix(rest, "zstd-chunked") {
				k = "io.github.containers." + rest
			}
			to[k] = v
		}
		delete(to, "containerd.io/snapshot/stargz/toc.digest")
		return to
	})
	ref = r.Push(t, "app:podman", podmans)
	convert(ref, "podman-chunked", publish.ZstdChunked, 2)
	convert(ref, "podman-estargz", publish.EStargz, 0)
	// An eStargz layer that an older program has left podman's words on.
	wrong := renamed(t, r.Host()+"/app:podman-estargz", func(a map[string]string) map[string]string {
		a["io.github.containers.zstd-chunked.manifest-checksum"] = "sha256:3"
		return a
	})
	convert(r.Push(t, "app:wrong", wrong), "wrong-estargz", publish.EStargz, 2)
}

// What convert puts into a layout is what it pushes.
func TestConvertIntoLayout(t *testing.T) {
	r := ocitest.New(t)
	img, tars := tortured(t)
	ref := r.Push(t, "app:gzip", img)
	dir := filepath.Join(t.TempDir(), "l")
	o := publish.ConvertOptions{To: publish.ZstdChunked, Tag: "new", TempDir: t.TempDir()}
	if _, err := publish.Convert(t.Context(), whole(t, ref, options()), layout(t, dir), o); err != nil {
		t.Fatal(err)
	}
	wantTree(t, "oci-layout:"+dir+":new", publish.ZstdChunked, tars)
}

// packed is a tar in gzip.
func packed(t testing.TB, tar []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(tar)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
