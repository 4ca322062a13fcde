package prepare

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/oci"
)

// putImage writes the plan of an image whose layers have these devices; those with a
// name of one letter have no data.
func putImage(t *testing.T, dir, key string, devices ...string) {
	t.Helper()
	p := Plan{Image: oci.Image{Layers: make([]oci.Layer, len(devices))}}
	for n, d := range devices {
		p.Layers = append(p.Layers, Layer{Device: ondemand.ObjectID(d)})
		if len(d) > 1 {
			p.Devices = append(p.Devices, n)
		}
	}
	var b bytes.Buffer
	if err := seal(&b, p); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "images", key, "plan.json"), b.String())
	put(t, filepath.Join(dir, "images", key, "metadata.erofs"), "")
}

// putMeaning writes what a name means: that image.
func putMeaning(t *testing.T, dir, key string) {
	t.Helper()
	var b bytes.Buffer
	if err := seal(&b, meaning{Key: key}); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, askedDir, key+".json"), b.String())
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOrphansAreWhatNothingNeeds(t *testing.T) {
	dir := t.TempDir()
	has := func(ids ...string) func(ondemand.ObjectID) bool {
		return func(id ondemand.ObjectID) bool { return slices.Contains(ids, string(id)) }
	}
	nothing := func(string) bool { return false }
	want := func(name string, exists func(ondemand.ObjectID) bool, mounted func(string) bool, want ...string) {
		t.Helper()
		got, err := Orphans(dir, exists, mounted)
		if err != nil {
			t.Fatal(err)
		}
		for n := range got {
			got[n], _ = filepath.Rel(dir, got[n])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	want("an empty root", has(), nothing)
	putImage(t, dir, "one", "aa", "bb", "e")
	putImage(t, dir, "two", "bb", "cc")
	putImage(t, dir, "none", "e")
	for _, id := range []string{"aa", "bb", "cc", "dd", "e", "f"} {
		put(t, filepath.Join(dir, "layers", id+".toc"), "")
	}
	put(t, filepath.Join(dir, "layers", ".new-1"), "")
	put(t, filepath.Join(dir, "images", "one", ".new-2"), "")
	put(t, filepath.Join(dir, "images", "half", "metadata.erofs"), "")
	put(t, filepath.Join(dir, "images", "old", "plan.json"), `{"version":1,"image":{}}`)
	putMeaning(t, dir, "one")
	putMeaning(t, dir, "half")
	put(t, filepath.Join(dir, askedDir, "damaged.json"), "{")
	left := []string{"asked/damaged.json", "asked/half.json", "images/half", "images/old", "images/one/.new-2", "layers/.new-1"}
	want("all objects", has("aa", "bb", "cc", "dd"), nothing, append(left, "layers/f.toc")...)
	want("one object of both images", has("bb"), nothing, append(left, "layers/dd.toc", "layers/f.toc")...)
	want("an image without objects", has("aa"), nothing,
		"asked/damaged.json", "asked/half.json", "images/half", "images/old", "images/one/.new-2", "images/two", "layers/.new-1", "layers/cc.toc", "layers/dd.toc", "layers/f.toc")
	want("no objects", has(), nothing,
		"asked/damaged.json", "asked/half.json", "asked/one.json", "images/half", "images/old", "images/one", "images/two", "layers/.new-1", "layers/aa.toc", "layers/bb.toc", "layers/cc.toc", "layers/dd.toc", "layers/f.toc")
	want("no objects, and a mount", has(), func(key string) bool { return key == "two" },
		"asked/damaged.json", "asked/half.json", "asked/one.json", "images/half", "images/old", "images/one", "layers/.new-1", "layers/aa.toc", "layers/dd.toc", "layers/f.toc")
	if _, err := Orphans(dir, has(), func(key string) bool { return key == "half" }); err == nil {
		t.Error("a mount without its plan: no error")
	}
	put(t, filepath.Join(dir, "images", "two", "plan.json"), `{"version": 99}`)
	if got, err := Orphans(dir, has(), nothing); err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("a plan of a later version: %v, %v", got, err)
	}
}
