package oci_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// options keep what the machine has for hosts out of the tests.
func options(t testing.TB) oci.Options {
	return oci.Options{Platform: "linux/amd64", HostsDir: t.TempDir(), OpenFile: file.Open}
}

func mustOpen(t testing.TB, ref string, opts oci.Options) *oci.Image {
	t.Helper()
	img, err := oci.Open(t.Context(), ref, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Errorf("close image: %v", err)
		}
	})
	return img
}

// mustBlob returns a layer, which is closed with its image.
func mustBlob(t testing.TB, img *oci.Image, n int) source.Blob {
	t.Helper()
	b, err := img.Layers[n].Blob(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRegistrySuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		ref := ocitest.New(t).Push(t, "suite:1", ocitest.Image(t, data))
		return mustBlob(t, mustOpen(t, ref, options(t)), 0)
	})
}

func TestTokensAndRedirectsSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		r := ocitest.New(t)
		ref := r.Push(t, "suite:1", ocitest.Image(t, data))
		r.WantToken("", "")
		r.RedirectBlobs()
		return mustBlob(t, mustOpen(t, ref, options(t)), 0)
	})
}

func TestWithoutRangesSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		r := ocitest.New(t)
		ref := r.Push(t, "suite:1", ocitest.Image(t, data))
		img := mustOpen(t, ref, options(t))
		r.Blob(data, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			if _, err := w.Write(data); err != nil {
				return // the client has gone
			}
		}))
		b := mustBlob(t, img, 0)
		if source.IsSequential(b) != (len(data) > 0) {
			t.Fatal("a registry without ranges, and the blob is not sequential")
		}
		return b
	})
}

func TestLayoutSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		dir := t.TempDir()
		path, err := layout.Write(dir, ocitest.Index(t, ocitest.Image(t, data)))
		if err != nil || string(path) != dir {
			t.Fatal(path, err)
		}
		return mustBlob(t, mustOpen(t, "oci-layout:"+dir, options(t)), 0)
	})
}

func TestArchiveSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		ref := "docker-archive:" + archive(t, map[string]v1.Image{"a/b:1": ocitest.Image(t, []byte("first"), data)})
		return mustBlob(t, mustOpen(t, ref, options(t)), 1)
	})
}

// archive writes what docker save writes.
func archive(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "save.tar")
	all := map[name.Reference]v1.Image{}
	for ref, img := range images {
		tag, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		all[tag] = img
	}
	if err := tarball.MultiRefWriteToFile(path, all); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImageSaysWhatItIs(t *testing.T) {
	one, two := sourcetest.Bytes(5000), sourcetest.Bytes(70000)[1:]
	amd := ocitest.Image(t, one, two)
	arm := ocitest.ImageFor(t, v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, two)
	r := ocitest.New(t)
	ref := r.Push(t, "team/app:2", ocitest.Index(t, amd, arm))
	img := mustOpen(t, ref, options(t))
	wantDigest, err := amd.Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := amd.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if img.Ref != ref || img.Digest.String() != wantDigest.String() || img.IndexDigest == "" ||
		img.Platform != "linux/amd64" || !bytes.Equal(img.Config, config) || len(img.Layers) != 2 {
		t.Errorf("%+v", img)
	}
	l := img.Layers[1]
	if l.Digest != digest.FromBytes(two) || l.DiffID != l.Digest || l.Size != int64(len(two)) || !strings.Contains(l.MediaType, "tar") {
		t.Errorf("%+v", l)
	}
	b := mustBlob(t, img, 1)
	if id := source.IdentityOf(b); id.Validator != l.Digest.String() || id.Size != l.Size {
		t.Errorf("identity %+v", id)
	}
	sourcetest.MustRead(t, b, two, 100, 20000)

	byDigest := mustOpen(t, strings.TrimSuffix(ref, ":2")+"@"+img.IndexDigest.String(), options(t))
	if byDigest.Digest != img.Digest || byDigest.IndexDigest != img.IndexDigest {
		t.Errorf("%+v", byDigest)
	}
	opts := options(t)
	opts.Platform = "linux/arm64"
	if got := mustOpen(t, ref, opts); got.Platform != "linux/arm64" || len(got.Layers) != 1 {
		t.Errorf("%+v", got)
	}
	opts.Platform = "linux/s390x"
	_, err = oci.Open(t.Context(), ref, opts)
	if !errors.Is(err, oci.ErrNoPlatform) || !strings.Contains(err.Error(), "linux/amd64, linux/arm64") {
		t.Errorf("no such platform: %v", err)
	}
}

// After a restart an image is there without its registry.
func TestReopenMakesNoRequest(t *testing.T) {
	data := sourcetest.Bytes(50000)
	r := ocitest.New(t)
	saved := *mustOpen(t, r.Push(t, "app:1", ocitest.Image(t, data)), options(t))
	before := len(r.Log())
	img, err := oci.Reopen(t.Context(), saved, options(t))
	if err != nil {
		t.Fatal(err)
	}
	b, err := img.Layers[0].Blob(t.Context())
	if err != nil || len(r.Log()) != before || b.Size() != 50000 {
		t.Fatalf("%d requests, %v", len(r.Log())-before, err)
	}
	sourcetest.MustRead(t, b, data, 40000, 10000)
	r.Stop()
	if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, source.ErrUnreachable) || !source.Temporary(err) {
		t.Errorf("without the registry: %v", err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a closed image: %v", err)
	}
}

// Tokens and signed addresses expire under readers, who do not notice.
func TestExpiryInTheMiddle(t *testing.T) {
	data := sourcetest.Bytes(1 << 20)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("", "")
	r.RedirectBlobs()
	img := mustOpen(t, ref, options(t))
	b := retry.Wrap(mustBlob(t, img, 0), retry.Policy{})
	for off := int64(0); off < 1<<20; off += 64 << 10 {
		switch off >> 16 % 3 {
		case 0:
			r.ExpireTokens()
		case 1:
			r.ExpireAddresses()
		default:
			r.ExpireTokens()
			r.ExpireAddresses()
		}
		sourcetest.MustRead(t, b, data, off, 64<<10)
	}
	for _, q := range r.Log() {
		if q.Server == "cdn" && q.Header.Get("Authorization") != "" {
			t.Fatalf("the token went to the other host: %v", q.Header)
		}
	}
}

// An open body survives what expires meanwhile, and the next request goes on.
func TestAHundredReadersRenewOnce(t *testing.T) {
	data := sourcetest.Bytes(1 << 20)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("", "")
	b := mustBlob(t, mustOpen(t, ref, options(t)), 0)
	token := func(q ocitest.Request) bool { return q.Server == "token" }
	before := r.Count(token)
	r.ExpireTokens()
	done := make(chan error, 100)
	for i := range int64(100) {
		go func() {
			got, err := sourcetest.Read(context.WithoutCancel(t.Context()), b, i*1000, 1000)
			if err == nil && !bytes.Equal(got, data[i*1000:(i+1)*1000]) {
				err = errors.New("wrong bytes")
			}
			done <- err
		}()
	}
	for range 100 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := r.Count(token) - before; n != 1 {
		t.Errorf("%d requests for tokens", n)
	}
}
