package leaktest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

type tests func() int

func (r tests) Run() int { return r() }

func TestMain(m *testing.M) { Main(m) }

func TestCleanRunKeepsItsStatus(t *testing.T) {
	for _, want := range []int{0, 2} {
		var out strings.Builder
		if got := Run(tests(func() int { return want }), &out); got != want || out.Len() > 0 {
			t.Errorf("status %d: got %d, %q", want, got, out.String())
		}
	}
}

func TestTempDirIsTheRunsOwn(t *testing.T) {
	before := os.TempDir()
	var inside string
	Run(tests(func() int { inside = os.TempDir(); return 0 }), os.Stderr)
	if inside == before || os.TempDir() != before {
		t.Errorf("TMPDIR was %s, inside %s, then %s", before, inside, os.TempDir())
	}
	if _, err := os.Stat(inside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", inside, err)
	}
}

func TestWhatIsLeftIsFoundAndNamed(t *testing.T) {
	var undo []func() error
	t.Cleanup(func() {
		for _, u := range undo {
			if err := u(); err != nil {
				t.Error(err)
			}
		}
	})
	stop := make(chan struct{})
	for want, leave := range map[string]func() error{
		"/dev/zero": func() error {
			f, err := os.Open("/dev/zero")
			undo = append(undo, f.Close)
			return err
		},
		"left-file": func() error { return os.WriteFile(filepath.Join(os.TempDir(), "left-file"), nil, 0o600) },
		"TestWhatIsLeftIsFoundAndNamed": func() error {
			go func() { <-stop }()
			undo = append(undo, func() error { close(stop); return nil })
			return nil
		},
		"left-mount": func() error {
			at := filepath.Join(os.TempDir(), "left-mount")
			undo = append(undo, func() error {
				return errors.Join(syscall.Unmount(at, 0), os.RemoveAll(filepath.Dir(at)))
			})
			return errors.Join(os.Mkdir(at, 0o700), syscall.Mount("left", at, "tmpfs", 0, ""))
		},
	} {
		if want == "left-mount" && os.Geteuid() != 0 {
			continue
		}
		var out strings.Builder
		status := run(tests(func() int {
			if err := leave(); err != nil {
				t.Error(err)
			}
			return 0
		}), &out, 20*time.Millisecond)
		if status != 1 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: status %d, %q", want, status, out.String())
		}
		for _, u := range undo {
			if err := u(); err != nil {
				t.Error(err)
			}
		}
		undo = nil
	}
}
