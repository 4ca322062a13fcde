package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestRecordsComeBack(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file := record{Kind: kindAttach, Path: "/f", Object: "ab", Placeholder: true, Forget: true}
	dir := record{Kind: kindBind, Path: "/d", Devnode: "/s", Tag: "t"}
	for _, rec := range []record{file, dir, file} {
		if err := r.put(rec); err != nil {
			t.Fatal(err)
		}
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	file.Version, dir.Version = recordVersion, recordVersion
	file.Boot, dir.Boot = boot, boot
	got := make(map[string]record)
	list, err := r.list()
	for _, rec := range list {
		got[rec.Path] = rec
	}
	if err != nil || len(list) != 2 || !reflect.DeepEqual(got, map[string]record{"/f": file, "/d": dir}) {
		t.Fatalf("%+v, %v", list, err)
	}
	for range 2 { // what is gone can be removed again
		if err := r.remove("/f"); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := r.list(); err != nil || len(list) != 1 || list[0] != dir {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestRecordFromBeforeARestartNamesNoFilesystem(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := record{Kind: kindAttach, Path: "/now", Superblock: "erofs-1", Device: 7}
	if err := r.put(now); err != nil {
		t.Fatal(err)
	}
	before := `{"version":1,"kind":"attach","path":"/before","superblock":"erofs-1","device":7,"boot":"another"}`
	if err := os.WriteFile(r.name("/before"), []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := r.list()
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, rec := range list {
		if known := rec.Superblock != "" && rec.Device == 7; known != (rec.Path == "/now") || !known && rec.Superblock != "" {
			t.Errorf("%+v", rec)
		}
	}
}

func TestRecordThatCannotBeReadIsToldAndStays(t *testing.T) {
	r, err := openRecords(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.put(record{Kind: kindAttach, Path: "/f"}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"torn.json": `{"version":1,"ki`, "newer.json": `{"version":2}`, ".new-1": "left by a crash"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := r.list()
	if len(list) != 1 || err == nil || !strings.Contains(err.Error(), "torn.json") || !strings.Contains(err.Error(), "version 2, this program knows 1") {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "newer.json")); err != nil {
		t.Error(err)
	}
}

func TestRecordThatCannotBeMadeLeavesNothing(t *testing.T) {
	r := records{filepath.Join(t.TempDir(), "gone")}
	if err := r.put(record{Path: "/f"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if list, err := r.list(); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestObjectsAtKnowsWhatIsAttached(t *testing.T) {
	root := t.TempDir()
	r, err := openRecords(root)
	if err != nil {
		t.Fatal(err)
	}
	file, dir := filepath.Join(root, "f"), filepath.Join(root, "d")
	err = errors.Join(r.put(record{Kind: kindAttach, Path: file, Object: "ab"}), r.put(record{Kind: kindBind, Path: dir}))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "ab", dir: "", filepath.Join(root, "x"): "", "/no/such/dir/f": ""} {
		ids, found, err := ObjectsAt(root, path)
		if err != nil || found != (want != "") || found && (len(ids) != 1 || string(ids[0]) != want) {
			t.Errorf("%s: %q, %t, %v", path, ids, found, err)
		}
	}
}

func TestPlaceholderGoesOnlyWhileItIsOne(t *testing.T) {
	dir := t.TempDir()
	name := func(n string) string { return filepath.Join(dir, n) }
	err := errors.Join(makePlaceholder(name("mine")), os.WriteFile(name("full"), []byte("x"), 0o600),
		os.WriteFile(name("theirs"), nil, 0o600), os.Mkdir(name("dir"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	if err := makePlaceholder(name("full")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over a file: %v", err)
	}
	for path, want := range map[string]struct{ placeholder, stays bool }{
		"mine": {true, false}, "full": {true, true}, "theirs": {false, true}, "dir": {true, true}, "none": {true, false},
	} {
		if err := dropPlaceholder(record{Path: name(path), Placeholder: want.placeholder}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(name(path)); (err == nil) != want.stays {
			t.Errorf("%s: %v", path, err)
		}
	}
}
