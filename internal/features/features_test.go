package features_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPreContentIsFoundAndLeavesNothing(t *testing.T) {
	var p features.Prober
	dir := t.TempDir()
	before := openFiles(t)
	err := p.HaveFanotifyPreContent(dir)
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	entries, dirErr := os.ReadDir(dir)
	if dirErr != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, dirErr)
	}
	featurestest.SkipUnless(t, err)
}

func TestPreContentOnTmpfsIsASureNoThatNamesIt(t *testing.T) {
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(t.TempDir()))
	dir, err := os.MkdirTemp("/dev/shm", "lacuna-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	err = p.HaveFanotifyPreContent(dir)
	no := new(features.UnsupportedError)
	if !errors.Is(err, features.ErrNotSupported) || !errors.As(err, &no) || no.Filesystem != "tmpfs" {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "tmpfs") || !strings.Contains(err.Error(), "ext4, xfs or btrfs") {
		t.Errorf("message %q", err)
	}
	if again := p.HaveFanotifyPreContent(dir); !errors.Is(again, err) {
		t.Errorf("a sure answer was asked for again: %v", again)
	}
}

func TestPreContentOfADirectoryThatIsToCome(t *testing.T) {
	var p features.Prober
	dir := t.TempDir()
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(filepath.Join(dir, "not", "yet")))
	if _, err := os.Stat(filepath.Join(dir, "not")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the probe made it: %v", err)
	}
}

func TestUnsureAnswersAreAskedForAgain(t *testing.T) {
	var p features.Prober
	dir := t.TempDir()
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(dir))
	file := filepath.Join(dir, "x")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := p.HaveFanotifyPreContent(file)
	if got := features.AnswerOf(err); got != features.Unknown {
		t.Fatalf("a file instead of a directory: %s, %v", got, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := p.HaveFanotifyPreContent(file); err != nil {
		t.Errorf("once it is gone: %v", err)
	}
}

func TestMountAPIIsFoundAndMountsNothing(t *testing.T) {
	read := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	t.Setenv("TMPDIR", t.TempDir())
	var p features.Prober
	files := openFiles(t)
	err := p.HaveMountAPI()
	if strings.Contains(read(), "lacuna-probe") {
		t.Error("a mount is left")
	}
	if after := openFiles(t); after != files {
		t.Errorf("%d descriptors, %d before", after, files)
	}
	entries, dirErr := os.ReadDir(os.Getenv("TMPDIR"))
	if dirErr != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, dirErr)
	}
	featurestest.SkipUnless(t, err)
}

func TestErofsFileMountsAreFoundAndLeaveNothing(t *testing.T) {
	var p features.Prober
	dir := t.TempDir()
	before := openFiles(t)
	err := p.HaveErofsFileMounts(dir)
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	entries, dirErr := os.ReadDir(dir)
	if dirErr != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, dirErr)
	}
	featurestest.SkipUnless(t, err)
}

func TestErofsFileMountsOnTmpfsAreASureNoThatNamesIt(t *testing.T) {
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(t.TempDir()))
	dir, err := os.MkdirTemp("/dev/shm", "lacuna-test-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	err = p.HaveErofsFileMounts(filepath.Join(dir, "not yet"))
	no := new(features.UnsupportedError)
	if !errors.As(err, &no) || no.Filesystem != "tmpfs" || !strings.Contains(err.Error(), "ext4, xfs or btrfs") {
		t.Errorf("got %v", err)
	}
}

func TestListNamesEveryFeatureOnce(t *testing.T) {
	var p features.Prober
	list := p.List(t.TempDir())
	seen := map[string]bool{}
	for _, f := range list {
		if seen[f.Name] || f.Name == "" || f.For == "" || f.Answer != features.AnswerOf(f.Err) {
			t.Errorf("%+v", f)
		}
		seen[f.Name] = true
		if (f.Answer == features.Yes) != (f.Reason == "") {
			t.Errorf("%s: answer %s, reason %q", f.Name, f.Answer, f.Reason)
		}
	}
	if !seen[features.FanotifyPreContent] || !seen[features.MountAPI] || !seen[features.ErofsFileMounts] {
		t.Errorf("list %v", list)
	}
	if _, err := json.Marshal(list); err != nil {
		t.Error(err)
	}
}

func TestProbesRunConcurrently(t *testing.T) {
	var p features.Prober
	dir := t.TempDir()
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(dir))
	var q features.Prober
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := q.HaveFanotifyPreContent(dir); err != nil {
				t.Error(err)
			}
			if err := q.HaveMountAPI(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
