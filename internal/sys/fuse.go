package sys

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// FuseDevice is the file that FUSE connections are made of.
const FuseDevice = "/dev/fuse"

// OpenFuse opens FuseDevice: a connection that is not mounted yet. It does not block.
func OpenFuse() (*FD, error) {
	raw, err := unix.Open(FuseDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", FuseDevice, err)
	}
	return NewFD(raw), nil
}

// ReadFuse reads one request of a connection into p, which has room for the largest
// that it may send (EINVAL otherwise). EAGAIN: there is none. ENODEV: nothing is
// mounted with it any more. A request that its reader took back is passed over.
func ReadFuse(conn *FD, p []byte) (int, error) {
	for {
		n, err := unix.Read(conn.Int(), p)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ENOENT):
		default:
			return 0, fmt.Errorf("read a FUSE request: %w", err)
		}
	}
}

// WriteFuse writes one answer, or a notification. ENOENT: its reader took the request
// back. ENODEV: nothing is mounted with it any more.
func WriteFuse(conn *FD, p []byte) error {
	for {
		_, err := unix.Write(conn.Int(), p)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
		default:
			return fmt.Errorf("answer a FUSE request: %w", err)
		}
	}
}
