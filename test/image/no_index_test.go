package image

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// mountScanned wants ref to be mounted by downloads, and says why.
func (m *mounted) mountScanned(image *packed, ref string, args ...string) (why string) {
	m.t.Helper()
	dir := filepath.Join(m.Dir, "mnt")
	m.Lacuna(append(append([]string{"mount"}, args...), ref, dir)...)
	for _, l := range m.Status().Mounted[0].Layers {
		if why = l.Why; l.Format != "scanned" {
			m.t.Errorf("a layer is %s", l.Format)
		}
	}
	compare(m.t, dir, image.tree(m.t))
	m.umount(dir)
	return why
}

// Whatever a registry answers to who looks for an index, an image is mounted without.
func TestNoIndexCanBeLookedFor(t *testing.T) {
	image := formatOf("gzip").packAll(t, stormTars(t, 2)[0])
	page := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/html")
		if _, err := io.WriteString(w, "<html>hello</html>"); err != nil {
			t.Error(err)
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for what, c := range map[string]struct {
		answer http.HandlerFunc
		told   string
	}{
		"404": {status(404), ""}, "501": {status(501), ""},
		"401": {status(401), "401"}, "403": {status(403), "403"}, "429": {status(429), "429"}, "500": {status(500), "500"},
		"a page": {func(w http.ResponseWriter, _ *http.Request) { page(w) }, ""},
		"another page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/page")
			w.WriteHeader(http.StatusSeeOther)
		}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			content := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
			r := ocitest.NewFor(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				switch {
				case strings.Contains(q.URL.Path, "/referrers/"):
					c.answer(w, q)
				case q.URL.Path == "/page":
					page(w)
				default:
					content.ServeHTTP(w, q)
				}
			}))
			why := start(t, "").mountScanned(image, image.push(t, r))
			if told := strings.Contains(why, "looking for an index"); told != (c.told != "") || !strings.Contains(why, c.told) {
				t.Errorf("it is %q", why)
			}
		})
	}
}

// A mirror that has all of an image is enough.
func TestMirrorWithoutItsRegistry(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	image := formatOf("gzip").packAll(t, stormTars(t, 2)[0])
	image.push(t, r)
	hosts := filepath.Join(t.TempDir(), "127.0.0.1_1_")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\",\"resolve\"]\n", r.Host())
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m.mountScanned(image, "127.0.0.1:1/image:gzip", "--hosts-dir", filepath.Dir(hosts))
}

// An index that lists what is not there, or cannot be decoded by, is done without.
func TestIndexOfNoUse(t *testing.T) {
	t.Run("not there", func(t *testing.T) {
		r := ocitest.New(t)
		image := formatOf("soci1").packAll(t, stormTars(t, 2)[0])
		ref := image.push(t, r)
		r.Blob(image.ztocs[0], http.NotFoundHandler())
		m := start(t, "")
		if out, err := m.Try("mount", "--format", "soci", ref, filepath.Join(m.Dir, "mnt")); err == nil {
			t.Errorf("mounted by an index that is not there: %s", out)
		}
		if why := m.mountScanned(image, ref); !strings.Contains(why, "as soci v1") {
			t.Errorf("it is %q", why)
		}
	})
	t.Run("large spans", func(t *testing.T) {
		r := ocitest.New(t)
		image := formatOf("gzip").packAll(t, tarOf(t, file("a", string(toctest.Random(1, 40<<20)))))
		ref := image.index(t, image.push(t, r), 2, 32<<20)
		if why := start(t, "").mountScanned(image, ref); !strings.Contains(why, "too large to be decoded") {
			t.Errorf("it is %q", why)
		}
	})
}
