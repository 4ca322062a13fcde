package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/leaktest"
)

// The test binary is the program: testscript puts a copy of it named lacuna into
// the scripts' PATH, and what the program starts of itself, worker and keeper,
// is that copy again (os.Executable).
func TestMain(m *testing.M) {
	testscript.Main(checked{m}, map[string]func(){
		"lacuna": main,
	})
}

// checked looks for what the tests leave behind.
type checked struct{ m *testing.M }

// Run lets other users, too, run the program, then runs the tests.
func (c checked) Run() int {
	program, _, _ := strings.Cut(os.Getenv("PATH"), string(filepath.ListSeparator))
	for _, dir := range []string{program, filepath.Dir(program)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
	}
	return leaktest.Run(c.m, os.Stderr)
}

// TestScripts runs testdata/script and testdata/alone. The scripts attach files, so they need root
// and a kernel with pre-content events.
func TestScripts(t *testing.T) {
	featurestest.NeedRoot(t)
	root := workRoot(t)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(root))
	featurestest.SkipUnless(t, p.HaveMountAPI())
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(root))
	// Those in alone make mount namespaces, which copy the mounts of all others that run.
	for _, dir := range []string{"script", "alone"} {
		t.Run(dir, func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Dir: filepath.Join("testdata", dir), WorkdirRoot: root,
				Setup: setup, Cmds: commands(), RequireUniqueNames: true,
			})
		})
	}
}

// workRoot is a directory for the scripts on a disk: /tmp may be a tmpfs.
// Everybody may pass through it, because some commands run as nobody.
func workRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lacuna-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// setup gives each script a cache root of its own, and looks at its end for what
// is left of it.
func setup(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		panic("cmd/lacuna: internal error: a script's T is no testing.TB")
	}
	env.Setenv("LACUNA_ROOT", filepath.Join(env.WorkDir, "cache"))
	env.Setenv("LACUNA_CONFIG", filepath.Join(env.WorkDir, "empty.toml"))
	env.Setenv("GORACE", "atexit_sleep_ms=10")
	env.Setenv("GOTRACEBACK", "single")
	if err := os.WriteFile(filepath.Join(env.WorkDir, "empty.toml"), nil, 0o644); err != nil {
		return err
	}
	w := &world{t: t, dir: env.WorkDir, started: map[string]*process{}, servers: map[string]*server{}}
	env.Values[worldKey{}] = w
	t.Cleanup(w.end)
	return nil
}
