package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestReplaceLeavesTheOldOneOrTheNew(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	look := func(want string) {
		t.Helper()
		b, err := os.ReadFile(name)
		entries, e := os.ReadDir(dir)
		if err := errors.Join(err, e); err != nil || string(b) != want || len(entries) != 1 {
			t.Errorf("content %q, want %q; %d files, %v", b, want, len(entries), err)
		}
	}
	for _, content := range []string{"old", "new"} {
		if err := ReplaceBytes(name, []byte(content)); err != nil {
			t.Fatal(err)
		}
		look(content)
	}
	broken := errors.New("broken")
	err := Replace(name, func(w io.Writer) error {
		_, err := w.Write([]byte("half"))
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("a write that fails: %v", err)
	}
	look("new")
	// A rename that fails leaves nothing either.
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceBytes(filepath.Join(dir, "sub"), nil); err == nil {
		t.Error("a directory was replaced")
	}
	if err := os.Remove(filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	look("new")
}
