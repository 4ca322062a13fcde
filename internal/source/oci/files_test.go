package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/opencontainers/go-digest"
	spec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// mustFail opens ref and wants the error want with the text in it.
func mustFail(t *testing.T, ref string, opts oci.Options, want error, text string) {
	t.Helper()
	img, err := oci.Open(t.Context(), ref, opts)
	if err == nil {
		t.Errorf("%s opened", ref)
		if err := img.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	if want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %v with %q", ref, err, want, text)
	}
}

func writeLayout(t *testing.T, tags map[string]v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range tags {
		if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{spec.AnnotationRefName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLayout(t *testing.T) {
	one, two := sourcetest.Bytes(3000), sourcetest.Bytes(4000)
	dir := writeLayout(t, map[string]v1.Image{"a": ocitest.Image(t, one), "b": ocitest.Image(t, one, two)})
	b := mustOpen(t, "oci-layout:"+dir+":b", options(t))
	if len(b.Layers) != 2 || b.IndexDigest != "" || !strings.HasSuffix(b.Ref, ":b") {
		t.Errorf("%+v", b)
	}
	sourcetest.MustRead(t, mustBlob(t, b, 1), two, 10, 3000)
	again := mustOpen(t, "oci-layout:"+dir+"@"+b.Digest.String(), options(t))
	if again.Digest != b.Digest || len(again.Layers) != 2 {
		t.Errorf("by digest: %+v", again)
	}
	reopened, err := oci.Reopen(t.Context(), *b, options(t))
	if err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, mustBlob(t, reopened, 0), one, 10, 2000)
	if err := reopened.Close(); err != nil {
		t.Fatal(err)
	}
	mustFail(t, "oci-layout:"+dir, options(t), oci.ErrSeveral, "a, b")
	mustFail(t, "oci-layout:"+dir+":c", options(t), source.ErrNotFound, "a, b")
	mustFail(t, "oci-layout:"+dir+"/none", options(t), source.ErrNotFound, "none")
	mustFail(t, "oci-layout:"+dir+"@sha256:"+strings.Repeat("0", 64), options(t), source.ErrNotFound, "")
	opts := options(t)
	opts.Platform = "linux/arm64"
	mustFail(t, "oci-layout:"+dir+":a", opts, oci.ErrNoPlatform, "there is linux/amd64")
}

func TestLayoutThatIsDamaged(t *testing.T) {
	data := sourcetest.Bytes(3000)
	change := func(what string, change func([]byte) []byte) string {
		dir := writeLayout(t, map[string]v1.Image{"a": ocitest.Image(t, data)})
		img := mustOpen(t, "oci-layout:"+dir, options(t))
		path := map[string]string{
			"layer":    filepath.Join(dir, "blobs/sha256", img.Layers[0].Digest.Encoded()),
			"manifest": filepath.Join(dir, "blobs/sha256", img.Digest.Encoded()),
			"config":   filepath.Join(dir, "blobs/sha256", digest.FromBytes(img.Config).Encoded()),
			"version":  filepath.Join(dir, "oci-layout"),
			"index":    filepath.Join(dir, "index.json"),
		}[what]
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(old), 0o644); err != nil {
			t.Fatal(err)
		}
		return "oci-layout:" + dir
	}
	upper := func(data []byte) []byte { return bytes.ToUpper(data) }
	longer := func(data []byte) []byte { return append(data, ' ') }
	mustFail(t, change("manifest", upper), options(t), source.ErrNotBytes, "came with the digest")
	mustFail(t, change("manifest", longer), options(t), source.ErrNotBytes, "bytes")
	mustFail(t, change("config", upper), options(t), source.ErrNotBytes, "came with the digest")
	mustFail(t, change("version", func([]byte) []byte { return []byte(`{"imageLayoutVersion":"2.0.0"}`) }), options(t), oci.ErrUnsupported, "not an OCI layout")
	mustFail(t, change("index", func([]byte) []byte { return nil }), options(t), source.ErrNotBytes, "not JSON")
	img := mustOpen(t, change("layer", longer), options(t))
	if _, err := img.Layers[0].Blob(t.Context()); !errors.Is(err, source.ErrNotBytes) {
		t.Errorf("a layer of another size: %v", err)
	}
	// Changed under the reader.
	dir := writeLayout(t, map[string]v1.Image{"a": ocitest.Image(t, data)})
	img = mustOpen(t, "oci-layout:"+dir, options(t))
	b := mustBlob(t, img, 0)
	path := filepath.Join(dir, "blobs/sha256", img.Layers[0].Digest.Encoded())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 3000), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, source.ErrChanged) {
		t.Errorf("changed: %v", err)
	}
}

func TestArchive(t *testing.T) {
	one, two := sourcetest.Bytes(3000), sourcetest.Bytes(4000)
	path := archive(t, map[string]v1.Image{"a.test/a:1": ocitest.Image(t, one), "b:latest": ocitest.Image(t, one, two)})
	img := mustOpen(t, "docker-archive:"+path+":a.test/a:1", options(t))
	if len(img.Layers) != 1 || img.Platform != "linux/amd64" || img.Digest != digest.FromBytes(img.Config) {
		t.Errorf("%+v", img)
	}
	sourcetest.MustRead(t, mustBlob(t, img, 0), one, 10, 2000)
	reopened, err := oci.Reopen(t.Context(), *img, options(t))
	if err != nil {
		t.Fatal(err)
	}
	b := mustBlob(t, reopened, 0)
	sourcetest.MustRead(t, b, one, 10, 2000)
	if err := reopened.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a closed image: %v", err)
	}
	mustFail(t, "docker-archive:"+path, options(t), oci.ErrSeveral, "a.test/a:1")
	mustFail(t, "docker-archive:"+path+":c:1", options(t), source.ErrNotFound, "a.test/a:1")
	mustFail(t, "docker-archive:"+filepath.Join(t.TempDir(), "x.tar"), options(t), source.ErrNotFound, "x.tar")
	opts := options(t)
	opts.Platform = "linux/arm64"
	mustFail(t, "docker-archive:"+path+":a.test/a:1", opts, oci.ErrNoPlatform, "there is linux/amd64")
	// The file is another one now.
	if err := os.WriteFile(path, one, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Layers[0].Blob(t.Context()); !errors.Is(err, source.ErrChanged) {
		t.Errorf("changed: %v", err)
	}
	mustFail(t, "docker-archive:"+path, options(t), oci.ErrUnsupported, "no tar archive")
}

// Layers of docker save may be links to equal ones, and compressed.
func TestArchiveWithLinksAndCompression(t *testing.T) {
	layer := sourcetest.Bytes(5000)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(layer)
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q,%q,%q]}}`, id, id, id)
	manifest, err := json.Marshal([]any{map[string]any{
		"Config": "c.json", "RepoTags": nil, "Layers": []string{"1/layer.tar", "2/layer.tar", "3.tar.gz"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "save.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for _, h := range []struct {
		tar.Header
		data []byte
	}{
		{tar.Header{Name: "2/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../1/layer.tar"}, nil},
		{tar.Header{Name: "1/layer.tar", Typeflag: tar.TypeReg}, layer},
		{tar.Header{Name: strings.Repeat("long/", 40), Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "3.tar.gz", Typeflag: tar.TypeReg}, packed.Bytes()},
		{tar.Header{Name: "./c.json", Typeflag: tar.TypeReg}, []byte(config)},
		{tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, manifest},
	} {
		h.Size = int64(len(h.data))
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(h.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	img := mustOpen(t, "docker-archive:"+path, options(t))
	for i, want := range [][]byte{layer, layer, packed.Bytes()} {
		if l := img.Layers[i]; l.Digest != digest.FromBytes(want) || l.DiffID != id || l.Size != int64(len(want)) {
			t.Errorf("layer %d: %+v", i, l)
		}
		sourcetest.MustRead(t, mustBlob(t, img, i), want, 10, int64(len(want))-10)
	}
	if !strings.HasSuffix(img.Layers[2].MediaType, "gzip") || strings.HasSuffix(img.Layers[1].MediaType, "gzip") {
		t.Errorf("%+v", img.Layers)
	}
}

func TestFilesNeedOpenFile(t *testing.T) {
	for _, ref := range []string{"oci-layout:/x", "docker-archive:/x"} {
		if _, err := oci.Open(t.Context(), ref, oci.Options{}); err == nil || !strings.Contains(err.Error(), "OpenFile") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}
