package sys

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestHolesAndData(t *testing.T) {
	f := tempFile(t)
	raw := int(f.Fd())
	const mib = 1 << 20
	ok(t, f.Truncate(4*mib))
	for _, off := range []int64{mib, 3 * mib} {
		_, err := f.WriteAt(bytes.Repeat([]byte{1}, mib/2), off)
		ok(t, err)
	}
	type step struct {
		from, data, hole int64
	}
	for _, s := range []step{
		{0, mib, 0}, {mib, mib, mib + mib/2}, {mib + 5, mib + 5, mib + mib/2}, {2 * mib, 3 * mib, 2 * mib}, {3*mib + mib/2, -1, 3*mib + mib/2},
		{4*mib - 1, -1, 4*mib - 1}, {4 * mib, -1, -1}, {5 * mib, -1, -1},
	} {
		for what, c := range map[string]struct {
			next func(int, int64) (int64, error)
			want int64
		}{"data": {NextData, s.data}, "hole": {NextHole, s.hole}} {
			got, err := c.next(raw, s.from)
			if c.want < 0 && !errors.Is(err, io.EOF) || c.want >= 0 && (err != nil || got != c.want) {
				t.Errorf("next %s from %d: %d, %v, want %d", what, s.from, got, err, c.want)
			}
		}
	}
	before, err := AllocatedBytes(raw)
	ok(t, err)
	ok(t, PunchHole(raw, mib, mib/2))
	if got, err := NextData(raw, 0); err != nil || got != 3*mib {
		t.Errorf("data after punching: %d, %v", got, err)
	}
	after, err := AllocatedBytes(raw)
	if err != nil || after >= before {
		t.Errorf("%d bytes allocated, then %d, %v", before, after, err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 4*mib {
		t.Errorf("size %d, %v", info.Size(), err)
	}
	ok(t, Datasync(raw))
	ok(t, Uncache(raw))
	if _, err := NextData(700, 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("of what is not open: %v", err)
	}
	if Datasync(700) == nil || PunchHole(700, 0, 1) == nil || Uncache(700) == nil {
		t.Error("no error for what is not open")
	}
}

func TestDirectAlignment(t *testing.T) {
	// Of a file on a disk it is known or not; a pipe cannot be read so.
	n, err := DirectAlignment(tempFile(t).Name())
	if err != nil || n < 0 || n&(n-1) != 0 {
		t.Errorf("%d, %v", n, err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	ok(t, syscall.Mkfifo(pipe, 0o600))
	if n, err := DirectAlignment(pipe); n != 0 || err != nil {
		t.Errorf("of a pipe: %d, %v", n, err)
	}
	if _, err := DirectAlignment(pipe + "s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}

func TestUnwrittenExtentIsAHole(t *testing.T) {
	f := tempFile(t)
	raw := int(f.Fd())
	ok(t, syscall.Fallocate(raw, 0, 0, 1<<20))
	if _, err := NextData(raw, 0); !errors.Is(err, io.EOF) {
		t.Errorf("data in a file that was only allocated: %v", err)
	}
}

func TestLockBelongsToTheOpenFile(t *testing.T) {
	f := tempFile(t)
	other, err := os.Open(f.Name())
	ok(t, err)
	ok(t, TryLock(int(f.Fd())))
	ok(t, TryLock(int(f.Fd())))
	if err := TryLock(int(other.Fd())); !errors.Is(err, ErrLocked) {
		t.Errorf("second open file: %v", err)
	}
	dup, err := DupAbove(int(f.Fd()), 3)
	ok(t, err)
	ok(t, TryLock(dup.Int()))
	third, err := os.Open(f.Name())
	ok(t, err)
	ok(t, dup.Close())
	if err := TryLock(int(third.Fd())); !errors.Is(err, ErrLocked) {
		t.Errorf("a duplicate's Close freed the lock: %v", err)
	}
	ok(t, CloseAll(other, third))
	if err := TryLock(700); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("of what is not open: %v", err)
	}
}

func TestMemfdIsSharedByItsMappings(t *testing.T) {
	fd, err := Memfd("test", 10000)
	ok(t, err)
	a, err := MapShared(fd)
	ok(t, err)
	b, err := MapShared(fd)
	ok(t, err)
	copy(a.Bytes[9990:], "0123456789")
	if len(b.Bytes) != 10000 || string(b.Bytes[9990:]) != "0123456789" {
		t.Errorf("%d bytes, %q", len(b.Bytes), b.Bytes[9990:])
	}
	ok(t, a.Close())
	ok(t, a.Close())
	if a.Bytes != nil {
		t.Error("bytes after Close")
	}
	ok(t, fd.Close())
	if b.Bytes[9999] != '9' {
		t.Error("the mapping ended with the descriptor")
	}
	ok(t, b.Close())
	empty, err := Memfd("empty", 0)
	ok(t, err)
	if _, err := MapShared(empty); err == nil {
		t.Error("an empty file was mapped")
	}
	ok(t, empty.Close())
	if _, err := MapShared(NewFD(700)); !errors.Is(err, syscall.EBADF) {
		t.Errorf("of what is not open: %v", err)
	}
	if _, err := Memfd("negative", -1); err == nil {
		t.Error("a memfd of negative size")
	}
}

func TestFilesystemTypes(t *testing.T) {
	for path, want := range map[string]string{"/dev/shm": "tmpfs", "/proc": "0x9fa0"} {
		if got, err := FilesystemType(path); err != nil || got != want {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	absent := filepath.Join(t.TempDir(), "absent")
	if _, err := FilesystemType(absent); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if n, err := FreeBytes(t.TempDir()); err != nil || n <= 0 {
		t.Errorf("%d bytes free, %v", n, err)
	}
	if _, err := FreeBytes(absent); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func TestBirthTellsFilesApart(t *testing.T) {
	a := tempFile(t)
	first, err := Birth(int(a.Fd()))
	ok(t, err)
	again, err := Birth(int(a.Fd()))
	if err != nil || first != again || first == 0 {
		t.Errorf("born %d, then %d, %v", first, again, err)
	}
	if _, err := Birth(700); !errors.Is(err, syscall.EBADF) {
		t.Errorf("of what is not open: %v", err)
	}
}
