package manifest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/manifest"
)

const digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestEveryFieldIsRead(t *testing.T) {
	list := `[
		{"path": "a/b", "url": "https://example.org/x?k=v", "size": 12, "sha256": "` + strings.ToUpper(digest) + `", "mode": "0755", "mtime": "2026-01-02T05:04:05+02:00"},
		{"path": "ü", "url": "/srv/x"}
	]`
	want := []manifest.Entry{
		{
			Path: "a/b", URL: "https://example.org/x?k=v", Size: 12, SHA256: digest, Mode: 0o755,
			Modified: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		},
		{Path: "ü", URL: "/srv/x", Size: manifest.UnknownSize, Mode: 0o444},
	}
	for _, text := range []string{list, `{"files": ` + list + `}`, " \n" + list + "\n"} {
		got, err := manifest.Parse(strings.NewReader(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, %v", text, got, err)
		}
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	entry := func(fields string) string { return `[{"path": "a", "url": "http://x/a"}, {` + fields + `}]` }
	for _, c := range []struct{ text, want string }{
		{``, "ends too early"},
		{`[`, "ends too early"},
		{`{"files": [{"path": "a", "url": "/a"}]`, "ends too early"},
		{`[]`, "no file"},
		{`{}`, `"files"`},
		{`{"files": [{"path": "a", "url": "/a"}], "more": 1}`, `"files" and nothing else`},
		{`{"list": []}`, `"files"`},
		{`17`, "a list of files"},
		{`[{"path": "a", "url": "/a"}] 1`, "something follows"},
		{`[{"path": "a", "url": "/a"}}`, "not JSON"},
		{"[{\"path\": \"\xff\", \"url\": \"/a\"}]", "not UTF-8"},
		{`[{"path": "a" "url": "/a"}]`, "entry 1: invalid manifest: not JSON at byte 14"},
		{`["a"]`, "entry 1: a string"},
		{entry(`"url": "/a"`), "entry 2: path: missing"},
		{entry(`"path": "", "url": "/a"`), "entry 2: path: empty"},
		{entry(`"path": "b"`), `entry 2 ("b"): url: missing`},
		{entry(`"path": "b", "url": ""`), `entry 2 ("b"): url: empty`},
		{entry(`"path": "b", "url": "/a", "colour": "red"`), `unknown field "colour"`},
		{entry(`"path": 1, "url": "/a"`), "entry 2: path: a number"},
		{entry(`"path": "/b", "url": "/a"`), "path: it is absolute"},
		{entry(`"path": "../b", "url": "/a"`), `path: it leads out of the tree`},
		{entry(`"path": "b/../c", "url": "/a"`), `path: it leads out of the tree`},
		{entry(`"path": "b//c", "url": "/a"`), `path: not clean: write "b/c"`},
		{entry(`"path": "./b", "url": "/a"`), `path: not clean: write "b"`},
		{entry(`"path": "b/", "url": "/a"`), `path: not clean: write "b"`},
		{entry(`"path": ".", "url": "/a"`), `path: not clean`},
		{entry(`"path": "b\u0000", "url": "/a"`), `path: it has a NUL`},
		{entry(`"path": "` + strings.Repeat("n", 256) + `", "url": "/a"`), "a name of 256 bytes"},
		{entry(`"path": "` + strings.Repeat("n/", 200) + `n", "url": "/a"`), "200 directories deep"},
		{entry(`"path": "` + strings.Repeat("n/", 2100) + `n", "url": "/a"`), "4201 bytes long"},
		{entry(`"path": "a", "url": "/a"`), `entry 2 ("a"): path: entry 1 has it already`},
		{entry(`"path": "a/b", "url": "/a"`), `path: "a" is a file, of entry 1`},
		{`[{"path": "d/e/f", "url": "/a"}, {"path": "d/e", "url": "/a"}]`, "path: it is a directory of entry 1"},
		{entry(`"path": "b", "url": "ftp://x/a"`), "url: neither an http"},
		{entry(`"path": "b", "url": "a"`), "url: neither an http"},
		{entry(`"path": "b", "url": "http:///a"`), "url: it names no host"},
		{entry(`"path": "b", "url": "http://u:secret@x/%zz"`), "url: it cannot be parsed"},
		{entry(`"path": "b", "url": "/a", "size": []`), "size: it is not a number"},
		{entry(`"path": "b", "url": "/a", "size": null`), ""},
		{entry(`"path": "b", "url": "/a", "size": -1`), "size: -1 is negative"},
		{entry(`"path": "b", "url": "/a", "size": 1.5`), `size: "1.5" is not a number`},
		{entry(`"path": "b", "url": "/a", "size": 99999999999999`), "size: 99999999999999 bytes, at most"},
		{entry(`"path": "b", "url": "/a", "size": "12"`), `size: "12" is a string: write`},
		{entry(`"path": "b", "url": "/a", "size": true`), "size: it is not a number"},
		{entry(`"path": "b", "url": "/a", "sha256": "abc"`), `sha256: "abc" is not a digest`},
		{entry(`"path": "b", "url": "/a", "mode": "0888"`), `mode: "0888" is not`},
		{entry(`"path": "b", "url": "/a", "mode": "4755"`), `mode: "4755" is not`},
		{entry(`"path": "b", "url": "/a", "mode": 420`), "mode: a number"},
		{entry(`"path": "b", "url": "/a", "mtime": "1969-12-31T23:59:59Z"`), "before 1970"},
		{entry(`"path": "b", "url": "/a", "mtime": "yesterday"`), `mtime: "yesterday" is not a time`},
	} {
		_, err := manifest.Parse(strings.NewReader(c.text))
		if c.want == "" {
			if err != nil {
				t.Errorf("%.80s: %v", c.text, err)
			}
			continue
		}
		if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%.80s: %v, want %q", c.text, err, c.want)
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%.80s: %v tells a secret", c.text, err)
		}
	}
}

// FuzzParse wants of whatever is read that it can be a tree, and that it says the
// same when it is written and read again.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.json")
	if err != nil || len(seeds) == 0 {
		f.Fatal(seeds, err)
	}
	for _, name := range seeds {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := manifest.Parse(strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		files := make(map[string]bool)
		for _, e := range list {
			if files[e.Path] || path.Clean(e.Path) != e.Path || path.IsAbs(e.Path) || strings.HasPrefix(e.Path, "..") && !filepath.IsLocal(e.Path) {
				t.Fatalf("path %q", e.Path)
			}
			files[e.Path] = true
		}
		var again []map[string]any
		for _, e := range list {
			for dir := path.Dir(e.Path); dir != "."; dir = path.Dir(dir) {
				if files[dir] {
					t.Fatalf("%q is a file and a directory", dir)
				}
			}
			m := map[string]any{"path": e.Path, "url": e.URL, "sha256": e.SHA256, "mode": fmt.Sprintf("%o", e.Mode)}
			if e.Size >= 0 {
				m["size"] = e.Size
			}
			if !e.Modified.IsZero() {
				m["mtime"] = e.Modified.Format(time.RFC3339Nano)
			}
			again = append(again, m)
		}
		b, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		got, err := manifest.Parse(strings.NewReader(string(b)))
		if err != nil || !reflect.DeepEqual(got, list) {
			t.Fatalf("%v\n%+v\n%+v", err, got, list)
		}
	})
}
