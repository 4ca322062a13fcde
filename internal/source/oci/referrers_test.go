package oci_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// listing is a registry that answers who asks what refers to a manifest.
func listing(t *testing.T, answer http.HandlerFunc) *ocitest.Registry {
	t.Helper()
	content := registry.New()
	return ocitest.NewFor(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.URL.Path, "/referrers/") {
			answer(w, q)
			return
		}
		content.ServeHTTP(w, q)
	}))
}

// sendList sends a list of n manifests of indexType and one of another.
func sendList(t *testing.T, w http.ResponseWriter, names ...string) {
	list := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	for _, name := range names {
		for _, kind := range []string{indexType, "application/vnd.example.other"} {
			list.Manifests = append(list.Manifests, v1.Descriptor{
				MediaType: v1.MediaTypeImageManifest, ArtifactType: kind, Digest: digest.FromString(name), Size: 10,
			})
		}
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
	if err := json.NewEncoder(w).Encode(list); err != nil {
		t.Error(err)
	}
}

func referrers(t *testing.T, ref string, opts oci.Options) ([]v1.Descriptor, error) {
	t.Helper()
	img, err := oci.Open(t.Context(), ref, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	return img.Referrers(t.Context(), indexType)
}

// Lists are read to their end, which is at the same host.
func TestPagesOfReferrers(t *testing.T) {
	for name, c := range map[string]struct {
		link string
		want []string
	}{
		"absolute path": {"/v2/a/image/referrers/%s?page=%d&artifactType=x", []string{"0", "1", "2"}},
		"relative":      {"?page=%[2]d", []string{"0", "1", "2"}},
		"elsewhere":     {"http://192.0.2.1/v2/a/image/referrers/%s?page=%d", []string{"0"}},
		"another":       {"/v2/b/image/referrers/%s?page=%d", []string{"0"}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			r := listing(t, func(w http.ResponseWriter, q *http.Request) {
				asked = append(asked, q.URL.Query().Get("artifactType"))
				page := 0
				if p := q.URL.Query().Get("page"); p != "" {
					if _, err := fmt.Sscan(p, &page); err != nil {
						t.Error(err)
					}
				}
				if page < 2 {
					w.Header().Set("Link", fmt.Sprintf("<"+c.link+`>; rel="next"`, filepath.Base(q.URL.Path), page+1))
				}
				sendList(t, w, fmt.Sprint(page))
			})
			ref := r.Host() + "/a/image:1"
			ocitest.Push(t, ref, ocitest.Image(t, []byte("layer")), authn.Anonymous)
			got, err := referrers(t, ref, oci.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var want []digest.Digest
			for _, text := range c.want {
				want = append(want, digest.FromString(text))
			}
			if !slices.EqualFunc(got, want, func(d v1.Descriptor, w digest.Digest) bool { return d.Digest == w }) {
				t.Errorf("got %v, want %v", got, want)
			}
			if asked[0] != indexType {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}

// A mirror that knows of nothing leaves it to the registry.
func TestMirrorThatListsNothing(t *testing.T) {
	mirror := listing(t, func(w http.ResponseWriter, _ *http.Request) { sendList(t, w) })
	own := listing(t, func(w http.ResponseWriter, _ *http.Request) { sendList(t, w, "it") })
	for _, r := range []*ocitest.Registry{mirror, own} {
		ocitest.Push(t, r.Host()+"/a/image:1", ocitest.Image(t, []byte("layer")), authn.Anonymous)
	}
	dir := filepath.Join(t.TempDir(), strings.Replace(own.Host(), ":", "_", 1)+"_")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\",\"resolve\"]\n", own.Host(), mirror.Host())
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := referrers(t, own.Host()+"/a/image:1", oci.Options{HostsDir: filepath.Dir(dir)})
	if err != nil || len(got) != 1 || got[0].Digest != digest.FromString("it") {
		t.Errorf("%v, %v", got, err)
	}
}

// What is no list is none, whatever its bytes are.
func TestListOfAnotherType(t *testing.T) {
	r := listing(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if _, err := w.Write([]byte(`{"manifests":[]}`)); err != nil {
			t.Error(err)
		}
	})
	ref := r.Host() + "/a/image:1"
	ocitest.Push(t, ref, ocitest.Image(t, []byte("layer")), authn.Anonymous)
	if got, err := referrers(t, ref, oci.Options{}); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
