package file_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func open(t *testing.T, data []byte) source.Blob {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := file.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) { sourcetest.Run(t, open) }

func TestReopenLooksAtNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := file.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, file.Reopen(path, source.IdentityOf(b)), []byte("data"), 1, 3)
	gone := file.Reopen(path+"2", source.IdentityOf(b))
	if _, err := gone.ReadRange(t.Context(), 0, 1); gone.Size() != 4 || !errors.Is(err, source.ErrNotFound) {
		t.Fatalf("absent file: size %d, %v", gone.Size(), err)
	}
}

func TestChangedFile(t *testing.T) {
	data := sourcetest.Bytes(100000)
	for name, change := range map[string]func(path string) error{
		"written": func(path string) error { return write(path, 5, []byte("x")) },
		"grown":   func(path string) error { return write(path, 100000, []byte("x")) },
		"cut":     func(path string) error { return os.Truncate(path, 90000) },
		"replaced": func(path string) error {
			if err := os.WriteFile(path+"2", data, 0o600); err != nil {
				return err
			}
			return os.Rename(path+"2", path)
		},
		"written, and its time set back": func(path string) error {
			info, err := os.Stat(path)
			if err == nil {
				err = write(path, 5, []byte("x"))
			}
			if err != nil {
				return err
			}
			return os.Chtimes(path, info.ModTime(), info.ModTime())
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := file.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			inProgress, err := b.ReadRange(t.Context(), 0, 100000)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			// The file that is open may be the old one still.
			got, err := io.ReadAll(inProgress)
			if err == nil && !bytes.Equal(got, data) || err != nil && !errors.Is(err, source.ErrChanged) {
				t.Errorf("read in progress: %v", err)
			}
			if err := inProgress.Close(); err != nil {
				t.Error(err)
			}
			if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, source.ErrChanged) {
				t.Errorf("later read: %v", err)
			}
		})
	}
}

// The filesystem may give a file that is made anew the inode number of the old.
func TestFileMadeAnewWithTheOldTime(t *testing.T) {
	at := time.Unix(1, 0)
	path := filepath.Join(t.TempDir(), "data")
	write := func(path string, b byte) (ino uint64, changed int64) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte{b}, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino, st.Ctim.Nano()
	}
	same := 0
	for range 10 {
		old, changed := write(path, 1)
		b, err := file.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		// Until the clock by which the filesystem stamps has gone on.
		for now := changed; now == changed; {
			_, now = write(path+"2", 0)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if ino, _ := write(path, 2); ino == old {
			same++
		}
		if got, err := sourcetest.Read(t.Context(), b, 0, 1); !errors.Is(err, source.ErrChanged) {
			t.Fatalf("read %d, %v", got, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of 10 new files had the old inode number", same)
}

func write(path string, off int64, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

func TestNoRegularFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Open(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("absent file: %v", err)
	}
	for _, path := range []string{dir, fifo, "/dev/zero"} {
		if _, err := file.Open(t.Context(), path); err == nil {
			t.Errorf("%s opened", path)
		}
	}
}
