package sys

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// null is a new descriptor of /dev/null.
func null(t testing.TB) *FD {
	t.Helper()
	raw, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	ok(t, err)
	return NewFD(raw)
}

func TestCloseClosesOnce(t *testing.T) {
	fd := null(t)
	raw := fd.Int()
	ok(t, fd.Close())
	if fd.Int() != -1 || IsOpen(raw) {
		t.Errorf("number %d, open: %v", fd.Int(), IsOpen(raw))
	}
	other := null(t) // most likely on the same number
	ok(t, fd.Close())
	if !IsOpen(other.Int()) {
		t.Error("the second Close closed somebody else's descriptor")
	}
	ok(t, other.Close())
	if err := NewFD(raw).Close(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("close of what is not open: %v", err)
	}
}

func TestCloseConcurrently(t *testing.T) {
	fd := null(t)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			if fd.Close() != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of 8 failed", failed.Load())
	}
}

func TestDisownLeavesItOpen(t *testing.T) {
	fd := null(t)
	raw := fd.Disown()
	ok(t, fd.Close())
	if !IsOpen(raw) || fd.Int() != -1 || fd.Disown() != -1 {
		t.Errorf("open: %v, number %d", IsOpen(raw), fd.Int())
	}
	ok(t, NewFD(raw).Close())
}

func TestReplaceClosesTheOld(t *testing.T) {
	fd, other := null(t), null(t)
	old, new := fd.Int(), other.Int()
	ok(t, fd.Replace(other))
	if fd.Int() != new || other.Int() != -1 || IsOpen(old) || !IsOpen(new) {
		t.Errorf("numbers %d and %d, old open: %v", fd.Int(), other.Int(), IsOpen(old))
	}
	ok(t, fd.Close())
	ok(t, fd.Replace(null(t))) // of one that is closed
	ok(t, fd.Close())
}

func TestDuplicates(t *testing.T) {
	fd := null(t)
	dup, err := fd.Dup()
	ok(t, err)
	high, err := DupAbove(fd.Int(), 500)
	ok(t, err)
	ok(t, DupOnto(fd.Int(), 600))
	onto := NewFD(600)
	if high.Int() < 500 || !IsOpen(600) {
		t.Errorf("numbers %d and 600", high.Int())
	}
	for _, d := range []*FD{dup, high, onto} {
		if same, err := SameOpenFile(fd.Int(), d.Int()); err != nil || !same {
			t.Errorf("%d: same open file: %v, %v", d.Int(), same, err)
		}
		flags, err := unix.FcntlInt(uintptr(d.Int()), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%d is inherited: %v", d.Int(), err)
		}
	}
	other := null(t)
	if same, err := SameOpenFile(fd.Int(), other.Int()); err != nil || same {
		t.Errorf("two opens of one file are one open file: %v", err)
	}
	ok(t, DupOnto(other.Int(), 600)) // closes what was there
	if same, err := SameOpenFile(other.Int(), 600); err != nil || !same {
		t.Errorf("600 is still the old: %v", err)
	}
	if _, err := DupAbove(700, 3); !errors.Is(err, syscall.EBADF) {
		t.Errorf("duplicate of what is not open: %v", err)
	}
	if err := DupOnto(700, 701); !errors.Is(err, syscall.EBADF) {
		t.Errorf("duplicate of what is not open: %v", err)
	}
	ok(t, CloseAll(fd, dup, high, onto, other))
}

func TestCloseAllClosesAllAndJoinsErrors(t *testing.T) {
	a, b := null(t), null(t)
	bad := NewFD(700)
	if err := CloseAll(a, bad, b); !errors.Is(err, syscall.EBADF) {
		t.Errorf("got %v", err)
	}
	if a.Int() != -1 || b.Int() != -1 {
		t.Error("not all were closed")
	}
}

func TestFileOwnsTheDescriptor(t *testing.T) {
	fd := null(t)
	f := fd.File("name")
	if fd.Int() != -1 || f.Name() != "name" {
		t.Errorf("number %d, name %s", fd.Int(), f.Name())
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	ok(t, f.Close())
}

func TestFlags(t *testing.T) {
	fd := null(t)
	for _, on := range []bool{true, false, true} {
		ok(t, SetInherit(fd.Int(), on))
		flags, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_GETFD, 0)
		ok(t, err)
		if (flags&unix.FD_CLOEXEC == 0) != on {
			t.Errorf("inherit %v: flags %#x", on, flags)
		}
		ok(t, SetNonblock(fd.Int(), on))
		flags, err = unix.FcntlInt(uintptr(fd.Int()), unix.F_GETFL, 0)
		ok(t, err)
		if (flags&unix.O_NONBLOCK != 0) != on {
			t.Errorf("non-blocking %v: flags %#x", on, flags)
		}
	}
	ok(t, fd.Close())
	if SetInherit(700, true) == nil || SetNonblock(700, true) == nil {
		t.Error("flags of what is not open were set")
	}
}

func TestSetFileLimit(t *testing.T) {
	var before unix.Rlimit
	ok(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	t.Cleanup(func() { ok(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) })
	low := unix.Rlimit{Cur: 256, Max: before.Max}
	ok(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	for _, c := range []struct{ want, got uint64 }{{100, 100}, {256, 256}, {300, 300}, {before.Max, before.Max}} {
		if got, err := SetFileLimit(c.want); err != nil || got != c.got {
			t.Errorf("to %d: %d, %v", c.want, got, err)
		}
	}
	// More than fs.nr_open allows nobody.
	got, err := SetFileLimit(1 << 62)
	if err != nil || got < before.Max {
		t.Errorf("to everything: %d, %v", got, err)
	}
}

func TestFileOfADescriptorAndItsInode(t *testing.T) {
	f := tempFile(t)
	byPath, err := OpenPath(f.Name())
	ok(t, err)
	a, err := InodeOf(int(f.Fd()))
	ok(t, err)
	b, err := InodeOf(byPath.Int())
	ok(t, err)
	if a != b || a.Ino == 0 {
		t.Errorf("%+v and %+v", a, b)
	}
	if target, err := os.Readlink(ProcPath(byPath.Int())); err != nil || target != f.Name() {
		t.Errorf("path %s, %v", target, err)
	}
	ok(t, byPath.Close())
	if _, err := InodeOf(700); !errors.Is(err, syscall.EBADF) {
		t.Errorf("inode of what is not open: %v", err)
	}
	if _, err := OpenPath(f.Name() + "-absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open what is absent: %v", err)
	}
}
