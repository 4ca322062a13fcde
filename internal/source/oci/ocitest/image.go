package ocitest

import (
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is an image for linux/amd64 whose layers have these bytes, as they are.
func Image(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	return ImageFor(t, v1.Platform{OS: "linux", Architecture: "amd64"}, layers...)
}

// ImageFor is Image for another platform.
func ImageFor(t testing.TB, p v1.Platform, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, data := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(data, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// Index is an index of images, by their configurations' platforms.
func Index(t testing.TB, images ...v1.Image) v1.ImageIndex {
	t.Helper()
	var index v1.ImageIndex = empty.Index
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: config.Platform()}})
	}
	return index
}

// Push pushes img, an image or an index, to ref, a reference without the
// registry's name, and returns the whole reference. It is done before logins are asked for.
func (r *Registry) Push(t testing.TB, ref string, img remote.Taggable) string {
	t.Helper()
	ref = r.Host() + "/" + ref
	Push(t, ref, img, authn.Anonymous)
	return ref
}

// Push pushes img, an image or an index, to ref.
func Push(t testing.TB, ref string, img remote.Taggable, who authn.Authenticator) {
	t.Helper()
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	options := []remote.Option{remote.WithTransport(transport), remote.WithAuth(who)}
	switch img := img.(type) {
	case v1.Image:
		err = remote.Write(tag, img, options...)
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, img, options...)
	}
	if err != nil {
		t.Fatal(err)
	}
}
