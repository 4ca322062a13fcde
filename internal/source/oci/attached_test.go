package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ggcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

const indexType = "application/vnd.example.index.v1+json"

// about is a manifest about img, with one blob.
func about(t *testing.T, img v1.Image, kind string, data []byte) v1.Image {
	t.Helper()
	d, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	made := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(kind))
	if made, err = mutate.AppendLayers(made, static.NewLayer(data, "application/octet-stream")); err != nil {
		t.Fatal(err)
	}
	withSubject, ok := mutate.Subject(made, *d).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	return withSubject
}

// checkAttached wants exactly one manifest of indexType, and reads its blob.
func checkAttached(t *testing.T, img *oci.Image, want []byte) {
	t.Helper()
	found, err := img.Referrers(t.Context(), indexType)
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v: %v", found, err)
	}
	data, err := img.Manifest(t.Context(), found[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Subject.Digest.String() != img.Digest.String() {
		t.Fatalf("%s: %v", data, err)
	}
	b, err := img.Attached(t.Context(), digest.Digest(m.Layers[0].Digest.String()), m.Layers[0].Size)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, err := b.ReadRange(t.Context(), 1, b.Size()-1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want[1:]) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := img.Manifest(t.Context(), digest.FromString("nothing")); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("a manifest that is not there: %v", err)
	}
	if _, err := img.Manifest(t.Context(), "sha256:x"); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("no digest: %v", err)
	}
	if _, err := img.Attached(t.Context(), "x", 1); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("no digest: %v", err)
	}
}

func TestWhatRefersToAnImageIsFound(t *testing.T) {
	img := ocitest.Image(t, []byte("layer"))
	data := []byte("what belongs to the layer")
	ours, other := about(t, img, indexType, data), about(t, img, "application/vnd.example.other", []byte("x"))
	for name, host := range map[string]func(t *testing.T) string{
		// The registry of the CNCF has no list of referrers; clients keep a tag.
		"tag": func(t *testing.T) string { return ocitest.Real(t, "") },
		"list": func(t *testing.T) string {
			return ocitest.NewFor(t, registry.New(registry.WithReferrersSupport(true))).Host()
		},
	} {
		t.Run(name, func(t *testing.T) {
			ref := host(t) + "/a/image:1"
			ocitest.Push(t, ref, img, authn.Anonymous)
			got, err := oci.Open(t.Context(), ref, oci.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if found, err := got.Referrers(t.Context(), indexType); err != nil || len(found) != 0 {
				t.Fatalf("before there are any: %v, %v", found, err)
			}
			ocitest.Push(t, ref+"-other", other, authn.Anonymous)
			ocitest.Push(t, ref+"-ours", ours, authn.Anonymous)
			checkAttached(t, got, data)
		})
	}
}

func TestWhatRefersToAnImageInALayoutIsFound(t *testing.T) {
	img := ocitest.Image(t, []byte("layer"))
	data := []byte("what belongs to the layer")
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := ggcrlayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	named := ggcrlayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})
	if err := l.AppendImage(img, named); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"application/vnd.example.other", indexType} {
		if err := l.AppendImage(about(t, img, kind, data)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := oci.Open(t.Context(), "oci-layout:"+dir+":1", oci.Options{OpenFile: file.Open})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	checkAttached(t, got, data)
	if err := os.Remove(filepath.Join(dir, "index.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := got.Referrers(t.Context(), indexType); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("without an index: %v", err)
	}
}
