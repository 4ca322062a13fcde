package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
)

func TestObjectIsNamedByDigestElseBySourceAndVersion(t *testing.T) {
	one := origin{Kind: "http", Name: "http://h/x", Identity: source.Identity{Size: 10, Validator: `"v1"`}}
	elsewhere, newer, larger, once := one, one, one, one
	elsewhere.Name, newer.Identity.Validator, larger.Identity.Size, once.Once = "http://h/y", `"v2"`, 11, "WORD"
	id := func(o origin, sha string) string {
		t.Helper()
		got, err := o.id(sha)
		if err != nil || len(got) != 64 || strings.Trim(string(got), "0123456789abcdef") != "" {
			t.Fatalf("%q, %v", got, err)
		}
		return string(got)
	}
	if first, again := id(one, ""), id(one, ""); first != again {
		t.Error("the same twice has two names")
	}
	seen := make(map[string]int)
	for n, o := range []origin{one, elsewhere, newer, larger, once} {
		seen[id(o, "")] = n
	}
	if len(seen) != 5 {
		t.Errorf("five objects have %d names", len(seen))
	}
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	if id(one, a) != id(elsewhere, a) || id(one, a) != id(newer, a) {
		t.Error("what has one digest is one object, wherever it comes from")
	}
	if id(one, a) == id(one, b) || id(one, a) == id(larger, a) || id(one, a) == id(one, "") {
		t.Error("other digests or sizes are other objects")
	}
}

func TestSourceIsShownWithoutSecrets(t *testing.T) {
	raw, err := json.Marshal(origin{Kind: "http", Name: "https://user:hush@h/x?sig=hush#hush"})
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{SourceName(raw), string(RedactSource(raw))} {
		if strings.Contains(shown, "hush") || !strings.Contains(shown, "h/x?sig=xxxxx") {
			t.Errorf("shown: %s", shown)
		}
	}
	if SourceName([]byte("{")) != "" || RedactSource([]byte("{")) != nil {
		t.Error("something is shown of what cannot be read")
	}
	if got := SourceName([]byte(`{"kind":"file","name":"/a?b"}`)); got != "/a?b" {
		t.Errorf("a path is shown as %s", got)
	}
}

func TestHostsAreGrouped(t *testing.T) {
	for want, o := range map[string]origin{
		"https://h:81": {Kind: "http", Name: "https://user:pw@h:81/x?y"},
		"local files":  {Kind: "file", Name: "/http://h/x"},
	} {
		if got := o.host(); got != want {
			t.Errorf("%s: %s, want %s", o.Name, got, want)
		}
	}
}

// The layers of one registry share its connections, and are the same everywhere.
func TestLayersOfARegistryAreOneGroup(t *testing.T) {
	one, two := oci.Layer{Digest: "sha256:1"}, oci.Layer{Digest: "sha256:2"}
	for _, tt := range []struct {
		ref   string
		layer oci.Layer
		want  string
	}{
		{"h:81/a:v1", one, "registry h:81"}, {"h:81/b/c@sha256:3", two, "registry h:81"}, {"g/a:v1", one, "registry g"},
		{"oci-layout:/a/b", one, "local files"}, {"docker-archive:/a/b.tar", two, "local files"},
	} {
		o := layerOrigin(&oci.Image{Ref: tt.ref}, tt.layer)
		if got := o.host(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.ref, got, tt.want)
		}
		raw, err := json.Marshal(o)
		if want := `"name":"layer ` + tt.layer.Digest.String() + `"`; err != nil || !strings.Contains(string(raw), want) || strings.Contains(string(raw), "h:81") {
			t.Errorf("%s is described by %s, %v", tt.ref, raw, err)
		}
	}
}

func TestNotesTellWhatTheSourceLacks(t *testing.T) {
	for _, tt := range []struct {
		o    origin
		sha  string
		want int
	}{{origin{}, "", 0}, {origin{Sequential: true}, "", 1}, {origin{Once: "W"}, "", 1}, {origin{Once: "W"}, "aa", 0}, {origin{Sequential: true, Once: "W"}, "", 2}} {
		if got := tt.o.notes(tt.sha); len(got) != tt.want {
			t.Errorf("%+v: %q", tt.o, got)
		}
	}
}

// What can never be a source is wrong usage, and is told without its secrets.
func TestWhatIsNoSourceIsRefused(t *testing.T) {
	o := newOpener(Settings{}, slog.New(slog.DiscardHandler))
	defer o.Close()
	dir := t.TempDir()
	for _, name := range []string{"ftp://u:hush@h/x", "http://u:hush@/x", "http://u:hush@[::1/x", "file:///x", "relative", dir} {
		_, blob, err := o.open(context.Background(), name)
		var told *control.Error
		if blob != nil || !errors.As(err, &told) || told.Exit != control.ExitUsage || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSourceOfReadsAPathAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := newOpener(Settings{}, slog.New(slog.DiscardHandler))
	defer o.Close()
	where, blob, err := o.open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(where)
	if err := errors.Join(err, blob.Close()); err != nil {
		t.Fatal(err)
	}
	again, done, err := SourceOf(Settings{}, raw)
	if err != nil {
		t.Fatal(err)
	}
	r, err := again.ReadRange(context.Background(), 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close(), again.Close(), done()); err != nil || string(got) != "234" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCanonicalFollowsLinksOfTheDirectoryOnly(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o700), os.Symlink("d", filepath.Join(dir, "l")), os.Symlink("x", filepath.Join(dir, "d", "f")))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := canonical("attach", filepath.Join(dir, "l", "f")); err != nil || got != filepath.Join(dir, "d", "f") {
		t.Errorf("%s, %v", got, err)
	}
	_, err = canonical("attach", filepath.Join(dir, "none", "f"))
	var told *control.Error
	if !errors.As(err, &told) || told.Exit != control.ExitUsage || strings.Count(told.Message, "none") != 2 {
		t.Errorf("%v", err)
	}
}
