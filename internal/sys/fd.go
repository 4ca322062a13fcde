// Package sys is the raw kernel interface: fanotify, mounts, holes, descriptor
// passing, process descriptors. It has no policy: no retries by feature, no
// version checks, no logging. It is the only package that imports x/sys/unix.
//
// Numbers and layouts come from the uapi headers that the comments name.
package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by operations on an FD that has been closed.
var ErrClosed = errors.New("descriptor is closed")

// FD owns one descriptor. The bare number travels only into a system call.
type FD struct {
	raw atomic.Int64 // -1 once closed or disowned
}

// NewFD takes ownership of raw, which must be an open descriptor.
func NewFD(raw int) *FD {
	fd := new(FD)
	fd.raw.Store(int64(raw))
	return fd
}

// Int is the descriptor's number, -1 once it is closed.
func (fd *FD) Int() int { return int(fd.raw.Load()) }

// Disown gives the number to the caller, who closes it.
func (fd *FD) Disown() int { return int(fd.raw.Swap(-1)) }

// Close closes the descriptor. A second call does nothing.
func (fd *FD) Close() error {
	raw := fd.raw.Swap(-1)
	if raw < 0 {
		return nil
	}
	if err := unix.Close(int(raw)); err != nil {
		return fmt.Errorf("close descriptor %d: %w", raw, err)
	}
	return nil
}

// CloseInherited closes the descriptors from 3 on that this process was started with:
// those that are not close-on-exec, as all are that the runtime and this program make.
func CloseInherited() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for inherited descriptors: %w", err)
	}
	var errs []error
	for _, e := range entries {
		raw, err := strconv.Atoi(e.Name())
		if err != nil || raw < 3 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue // it was the listing's own, or it is ours
		}
		if err := unix.Close(raw); err != nil {
			errs = append(errs, fmt.Errorf("close descriptor %d: %w", raw, err))
		}
	}
	return errors.Join(errs...)
}

// Dup returns a second descriptor, close-on-exec, of the same open file.
func (fd *FD) Dup() (*FD, error) { return DupAbove(fd.Int(), 3) }

// DupAbove duplicates raw, close-on-exec, onto the lowest free number that is
// at least lowest.
func DupAbove(raw, lowest int) (*FD, error) {
	n, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, lowest)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor %d: %w", raw, err)
	}
	return NewFD(n), nil
}

// DupOnto duplicates raw onto the number target, close-on-exec, closing what
// target was.
func DupOnto(raw, target int) error {
	if err := unix.Dup3(raw, target, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("duplicate descriptor %d onto %d: %w", raw, target, err)
	}
	return nil
}

// IsOpen tells whether the number raw is an open descriptor of this process.
func IsOpen(raw int) bool {
	_, err := unix.FcntlInt(uintptr(raw), unix.F_GETFD, 0)
	return err == nil
}

// SetInherit says whether the descriptor survives execve.
func SetInherit(raw int, inherit bool) error {
	flag := unix.FD_CLOEXEC
	if inherit {
		flag = 0
	}
	if _, err := unix.FcntlInt(uintptr(raw), unix.F_SETFD, flag); err != nil {
		return fmt.Errorf("set close-on-exec of descriptor %d: %w", raw, err)
	}
	return nil
}

// SetNonblock sets O_NONBLOCK on the open file behind raw.
func SetNonblock(raw int, on bool) error {
	if err := unix.SetNonblock(raw, on); err != nil {
		return fmt.Errorf("set non-blocking on descriptor %d: %w", raw, err)
	}
	return nil
}

// File turns the descriptor into an *os.File, which owns it from then on.
func (fd *FD) File(name string) *os.File {
	return os.NewFile(uintptr(fd.Disown()), name)
}

// CloseAll closes each of cs and joins the errors.
func CloseAll(cs ...io.Closer) error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// SetFileLimit sets RLIMIT_NOFILE to want, or as near as this process may,
// and returns the limit that holds now.
func SetFileLimit(want uint64) (uint64, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	if lim.Cur == want {
		return want, nil
	}
	raised := unix.Rlimit{Cur: want, Max: max(lim.Max, want)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return want, nil
	}
	// Only CAP_SYS_RESOURCE may lift the hard limit, to at most fs.nr_open.
	raised = unix.Rlimit{Cur: min(lim.Max, want), Max: lim.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
		return lim.Cur, fmt.Errorf("raise the limit of open files to %d: %w", raised.Cur, err)
	}
	return raised.Cur, nil
}

// Replace makes fd own what other owned, and closes what fd was.
func (fd *FD) Replace(other *FD) error {
	old := NewFD(int(fd.raw.Swap(int64(other.Disown()))))
	if old.Int() < 0 {
		return nil
	}
	return old.Close()
}
