package sys

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Waker is an eventfd that ends a Poll from another goroutine.
type Waker struct{ fd *FD }

// NewWaker makes a Waker.
func NewWaker() (*Waker, error) {
	raw, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	return &Waker{NewFD(raw)}, nil
}

// Wake makes every Poll of w return, until Reset.
func (w *Waker) Wake() error {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, err := unix.Write(w.fd.Int(), one[:])
	if err != nil && !errors.Is(err, unix.EAGAIN) { // EAGAIN: the counter is full, so it is awake
		return fmt.Errorf("wake the poll: %w", err)
	}
	return nil
}

// Reset takes back every Wake so far.
func (w *Waker) Reset() error {
	var buf [8]byte
	_, err := unix.Read(w.fd.Int(), buf[:])
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("reset the waker: %w", err)
	}
	return nil
}

// Close frees the eventfd. No Poll may be using it.
func (w *Waker) Close() error { return w.fd.Close() }

// Poll waits until fd is readable or w is woken, without limit.
func Poll(fd *FD, w *Waker) (readable, woken bool, err error) {
	fds := []unix.PollFd{
		{Fd: int32(w.fd.Int()), Events: unix.POLLIN},
		{Fd: int32(fd.Int()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, false, fmt.Errorf("poll: %w", err)
		}
		return fds[1].Revents != 0, fds[0].Revents != 0, nil
	}
}

// WaitReadable waits until fd is readable or at its end, at most millis
// milliseconds (-1: without limit), and tells whether it is.
func WaitReadable(fd *FD, millis int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd.Int()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, millis)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("poll descriptor %d: %w", fd.Int(), err)
		}
		return n > 0, nil
	}
}

// FD is the eventfd, to be waited for alone.
func (w *Waker) FD() *FD { return w.fd }
