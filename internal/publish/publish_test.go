package publish_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// gzipLayer is a layer whose DiffID is that of its tar, which static.NewLayer's is not.
type gzipLayer struct {
	gcr.Layer
	tar []byte
}

func (l gzipLayer) DiffID() (gcr.Hash, error) {
	h, _, err := gcr.SHA256(bytes.NewReader(l.tar))
	return h, err
}

// image is one of two layers, with a file of each that is named after it.
func image(t testing.TB, arch string) (img gcr.Image, files map[string][]byte, blobs [][]byte) {
	t.Helper()
	return imageFor(t, gcr.Platform{OS: "linux", Architecture: arch})
}

func imageFor(t testing.TB, p gcr.Platform) (img gcr.Image, files map[string][]byte, blobs [][]byte) {
	t.Helper()
	arch := p.Architecture
	files = make(map[string][]byte)
	img = ocitest.ImageFor(t, p)
	for n := range 2 {
		var list []toctest.File
		for f := range 5 {
			name := fmt.Sprintf("d/%s-%d-%d", arch, n, f)
			files[name] = append(toctest.Random(uint64(n*10+f), f*70_001), toctest.Text(100_000)...)
			list = append(list, toctest.Reg(name, files[name]))
		}
		tar := toctest.Tar(t, list)
		blob := packed(t, tar)
		blobs = append(blobs, blob)
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: gzipLayer{static.NewLayer(blob, types.OCILayer), tar}, MediaType: types.OCILayer})
		if err != nil {
			t.Fatal(err)
		}
	}
	return img, files, blobs
}

// options are of everybody.
func options() oci.Options { return oci.Options{OpenFile: file.Open} }

func whole(t testing.TB, ref string, o oci.Options) *oci.Whole {
	t.Helper()
	w, err := oci.OpenWhole(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func upload(t testing.TB, ref string, o oci.Options) *oci.Upload {
	t.Helper()
	u, err := oci.OpenUpload(ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func layout(t testing.TB, dir string) *publish.Layout {
	t.Helper()
	l, err := publish.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func index(version int, tag string) publish.IndexOptions {
	return publish.IndexOptions{Version: version, SpanSize: 64 << 10, Tag: tag}
}

// compareFiles reads each file by the index of the image that ref names.
func compareFiles(t *testing.T, ref, platform string, version int, files map[string][]byte) {
	t.Helper()
	o := options()
	o.Platform = platform
	img, err := oci.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	x, err := publish.OpenIndex(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if x.Index.Version != version {
		t.Errorf("index of version %d", x.Index.Version)
	}
	for name, want := range files {
		var got bytes.Buffer
		if err := x.Cat(t.Context(), &got, "/"+name); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
		}
	}
	if err := x.Cat(t.Context(), io.Discard, "d/none"); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Both platforms get an index, in both versions, whether the registry lists referrers
// or not; a layer is read once; and made again it is the same.
func TestIndex(t *testing.T) {
	for _, version := range []int{1, 2} {
		for _, referrers := range []bool{false, true} {
			t.Run(fmt.Sprintf("v%d, referrers %t", version, referrers), func(t *testing.T) {
				r := ocitest.NewFor(t, registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0))))
				amd, amdFiles, blobs := image(t, "amd64")
				arm, armFiles, _ := image(t, "arm64")
				ref := r.Push(t, "app:1", ocitest.Index(t, amd, arm))
				tag, named := "", ref
				if version == 2 {
					tag, named = "1-soci", ref+"-soci"
				}
				before := len(r.Log())
				first, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), index(version, tag))
				if err != nil {
					t.Fatal(err)
				}
				for _, blob := range blobs {
					d, _, err := gcr.SHA256(bytes.NewReader(blob))
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					for _, q := range r.Log()[before:] {
						if q.Method == http.MethodGet && strings.HasSuffix(q.Path, d.String()) && q.Header.Get("Range") != "bytes=0-0" {
							n++
						}
					}
					if n != 1 {
						t.Errorf("layer %s was read %d times", d, n)
					}
				}
				compareFiles(t, named, "linux/amd64", version, amdFiles)
				compareFiles(t, named, "linux/arm64", version, armFiles)
				again, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), index(version, tag))
				if err != nil || fmt.Sprint(first) != fmt.Sprint(again) {
					t.Errorf("made again: %v, %v; was %v", again, err, first)
				}
			})
		}
	}
}

// An image that says nowhere what it is for is indexed, found by its index, and indexed again.
func TestImageWithoutPlatform(t *testing.T) {
	for _, version := range []int{1, 2} {
		r := ocitest.New(t)
		img, files, _ := imageFor(t, gcr.Platform{})
		from := r.Push(t, "app:1", img)
		ref := r.Host() + "/app:2"
		var made [2]*publish.Indexed
		for n := range made {
			var err error
			if made[n], err = publish.Index(t.Context(), whole(t, from, options()), upload(t, ref, options()), index(version, "2")); err != nil {
				t.Fatal(err)
			}
			if got := made[n].Images; len(got) != 1 || got[0].Platform != "" {
				t.Errorf("images %+v", got)
			}
			compareFiles(t, ref, "", version, files)
			compareFiles(t, ref, "linux/arm64", version, files) // it is for any
			from = ref
		}
		if made[0].Digest != made[1].Digest {
			t.Errorf("version %d made again: %s, was %s", version, made[1].Digest, made[0].Digest)
		}
	}
}

// What is about an image that gets another digest is told of.
func TestAttestationsAreToldOf(t *testing.T) {
	r := ocitest.New(t)
	amd, files, _ := image(t, "amd64")
	about, err := amd.Digest()
	if err != nil {
		t.Fatal(err)
	}
	list := mutate.AppendManifests(ocitest.Index(t, amd), mutate.IndexAddendum{
		Add: ocitest.Image(t, []byte("attested")), Descriptor: gcr.Descriptor{
			Platform:    &gcr.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.digest": about.String(), "vnd.docker.reference.type": "attestation-manifest"},
		},
	})
	ref := r.Push(t, "app:1", list)
	var notes []string
	o := index(2, "new")
	o.Report.Note = func(s string) { notes = append(notes, s) }
	if _, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o); err != nil {
		t.Fatal(err)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "1 stay in the index") {
		t.Errorf("notes: %q", notes)
	}
	compareFiles(t, r.Host()+"/app:new", "linux/amd64", 2, files)
}

// Converting again gives the same.
func TestConvert(t *testing.T) {
	for _, to := range []publish.Format{publish.EStargz, publish.ZstdChunked} {
		t.Run(string(to), func(t *testing.T) {
			r := ocitest.New(t)
			amd, _, _ := image(t, "amd64")
			arm, _, _ := image(t, "arm64")
			ref := r.Push(t, "app:1", ocitest.Index(t, amd, arm))
			o := publish.ConvertOptions{To: to, Tag: "new", TempDir: t.TempDir()}
			first, err := publish.Convert(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := publish.Convert(t.Context(), whole(t, ref, options()), layout(t, filepath.Join(t.TempDir(), "l")), o)
			if err != nil || fmt.Sprint(first) != fmt.Sprint(again) {
				t.Errorf("made again: %v, %v; was %v", again, err, first)
			}
			w := whole(t, r.Host()+"/app:new", options())
			if len(w.Images) != 2 {
				t.Fatalf("%d images", len(w.Images))
			}
			kept, err := publish.Convert(t.Context(), w, upload(t, ref, options()), o)
			if err != nil || kept.Digest != first.Digest || kept.Images[0].Kept != 2 {
				t.Errorf("what has the format: %v, %v", kept, err)
			}
			if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A layer with other bytes than its digest says is an error, whatever the bytes are,
// and nothing is named.
func TestWrongBytes(t *testing.T) {
	amd, _, blobs := image(t, "amd64")
	for what, change := range map[string]func([]byte) []byte{
		"a bit":       func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"the header":  func(b []byte) []byte { b[0] = 0; return b },
		"the trailer": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
	} {
		t.Run(what, func(t *testing.T) {
			r := ocitest.New(t)
			ref := r.Push(t, "app:1", amd)
			bad := change(bytes.Clone(blobs[1]))
			r.Blob(blobs[1], http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(bad))
			}))
			dir := t.TempDir()
			for name, make := range map[string]func(to publish.Place) error{
				"index": func(to publish.Place) error {
					_, err := publish.Index(t.Context(), whole(t, ref, options()), to, index(2, "new"))
					return err
				},
				"convert": func(to publish.Place) error {
					_, err := publish.Convert(t.Context(), whole(t, ref, options()), to, publish.ConvertOptions{To: publish.EStargz, Tag: "new"})
					return err
				},
			} {
				if err := make(upload(t, ref, options())); !errors.Is(err, toc.ErrDigest) {
					t.Errorf("%s pushed: %v", name, err)
				}
				if err := make(layout(t, filepath.Join(dir, name))); !errors.Is(err, toc.ErrDigest) {
					t.Errorf("%s written: %v", name, err)
				}
				if _, err := oci.Open(t.Context(), r.Host()+"/app:new", options()); !errors.Is(err, source.ErrNotFound) {
					t.Errorf("%s named it: %v", name, err)
				}
				if _, err := oci.Open(t.Context(), "oci-layout:"+filepath.Join(dir, name)+":new", options()); !errors.Is(err, source.ErrNotFound) {
					t.Errorf("%s named it: %v", name, err)
				}
			}
		})
	}
}

// failing is a place that fails the nth call.
type failing struct {
	publish.Place
	mu   sync.Mutex
	left int
}

var errPlace = errors.New("the place fails")

func (f *failing) fails() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left == 0 {
		return errPlace
	}
	return nil
}

func (f *failing) Has(ctx context.Context, d v1.Descriptor) (bool, error) {
	if err := f.fails(); err != nil {
		return false, err
	}
	return f.Place.Has(ctx, d)
}

func (f *failing) Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	if err := f.fails(); err != nil {
		return err
	}
	return f.Place.Blob(ctx, d, body)
}

func (f *failing) Manifest(ctx context.Context, data []byte, kind string) error {
	if err := f.fails(); err != nil {
		return err
	}
	return f.Place.Manifest(ctx, data, kind)
}

func (f *failing) Name(ctx context.Context, data []byte, kind, tag string) error {
	if err := f.fails(); err != nil {
		return err
	}
	return f.Place.Name(ctx, data, kind, tag)
}

// Whichever call to a place fails, that is what is told, and the tag names what is whole
// or nothing.
func TestPlaceFails(t *testing.T) {
	r := ocitest.New(t)
	amd, files, _ := image(t, "amd64")
	ref := r.Push(t, "app:1", amd)
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "l")
		to := &failing{Place: layout(t, dir), left: n}
		_, err := publish.Index(t.Context(), whole(t, ref, options()), to, index(2, "x"))
		if err == nil {
			compareFiles(t, "oci-layout:"+dir+":x", "", 2, files)
			if n < 10 {
				t.Errorf("only %d calls", n)
			}
			break
		}
		if !errors.Is(err, errPlace) {
			t.Fatalf("call %d: %v", n, err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "index.json"))
		var list struct{ Manifests []any }
		if err := errors.Join(err, json.Unmarshal(data, &list)); err != nil || len(list.Manifests) > 0 {
			t.Fatalf("call %d: %s, %v", n, data, err)
		}
	}
}

// A registry that wants a login gets it for pushing too, however it says that a token for
// reading is not enough; one that denies is told of.
func TestLogin(t *testing.T) {
	for name, refusal := range map[string]ocitest.Refusal{
		"with scope": ocitest.WithScope, "insufficient scope": ocitest.Insufficient,
		"without scope": ocitest.WithoutScope, "403": ocitest.Forbidden,
	} {
		t.Run(name, func(t *testing.T) {
			r := ocitest.New(t)
			amd, files, _ := image(t, "amd64")
			ref := r.Push(t, "app:1", amd)
			r.WantToken("me", "secret")
			r.RefuseBy(refusal)
			o := options()
			o.Authfile = filepath.Join(t.TempDir(), "auth.json")
			auth := fmt.Sprintf(`{"auths": {%q: {"username": "me", "password": "secret"}}}`, r.Host())
			if err := os.WriteFile(o.Authfile, []byte(auth), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := publish.Index(t.Context(), whole(t, ref, o), upload(t, ref, options()), index(2, "new")); !errors.Is(err, source.ErrDenied) {
				t.Errorf("without a login: %v", err)
			}
			for _, to := range []string{ref, r.Host() + "/elsewhere:1"} {
				if _, err := publish.Index(t.Context(), whole(t, ref, o), upload(t, to, o), index(2, "new")); err != nil {
					t.Fatalf("to %s: %v", to, err)
				}
			}
			r.WantToken("", "")
			r.RefuseBy(ocitest.WithScope)
			compareFiles(t, r.Host()+"/elsewhere:new", "", 2, files)
		})
	}
}

func TestNothingToIndex(t *testing.T) {
	r := ocitest.New(t)
	amd, _, _ := image(t, "amd64")
	ref := r.Push(t, "app:1", amd)
	o := index(2, "new")
	o.MinLayerSize = 10 << 20
	if _, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o); !errors.Is(err, publish.ErrNothing) {
		t.Error(err)
	}
}
