package sys

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelSigaction is struct kernel_sigaction of a 64-bit Linux with a restorer
// (include/linux/signal_types.h): handler, flags, restorer, mask.
type kernelSigaction [4]uint64

const sigIgnore = 1 // SIG_IGN

// IgnoreSignals has the kernel drop sigs, over execve too, and returns what takes
// that back. The Go runtime knows nothing of it. Blocking them instead would not
// do: a Go program unblocks SIGHUP, SIGINT, SIGQUIT and SIGTERM when it starts,
// before it has handlers, and would die of what was pending (Go,
// runtime/signal_unix.go, minitSignalMask).
func IgnoreSignals(sigs ...syscall.Signal) (restore func() error, err error) {
	old := make(map[syscall.Signal]*kernelSigaction)
	restore = func() error {
		var errs []error
		for sig, action := range old {
			errs = append(errs, sigaction(sig, action, nil))
		}
		return errors.Join(errs...)
	}
	for _, sig := range sigs {
		before := new(kernelSigaction)
		if err := sigaction(sig, &kernelSigaction{sigIgnore}, before); err != nil {
			return nil, errors.Join(err, restore())
		}
		old[sig] = before
	}
	return restore, nil
}

func sigaction(sig syscall.Signal, action, old *kernelSigaction) error {
	const maskSize = 8
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(old)), maskSize, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set the action of %v: %w", sig, errno)
	}
	return nil
}
