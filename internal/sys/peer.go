package sys

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerProcess returns a descriptor of the process that connected the socket
// conn, whatever has become of its number since (SO_PEERPIDFD, Linux 6.5;
// before that by the number). ESRCH, wrapped: that process has ended.
func PeerProcess(conn syscall.Conn) (*FD, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer process: %w", err)
	}
	var raw int
	var inner error
	err = rc.Control(func(fd uintptr) {
		raw, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if err != nil {
		return nil, fmt.Errorf("peer process: %w", err)
	}
	switch {
	case inner == nil:
		return NewFD(raw), nil
	case errors.Is(inner, unix.ENOPROTOOPT):
		peer, err := PeerOf(conn)
		if err != nil {
			return nil, err
		}
		return OpenProcess(peer.PID)
	case errors.Is(inner, unix.EINVAL):
		inner = unix.ESRCH // pidfd_prepare() says EINVAL of a reaped process before Linux 6.15
	}
	return nil, fmt.Errorf("peer process: %w", inner)
}

// PeerHungUp tells whether the other end of the connected socket conn is
// closed; messages from it may still wait to be read.
func PeerHungUp(conn syscall.Conn) (bool, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return false, fmt.Errorf("poll the peer: %w", err)
	}
	var fds [1]unix.PollFd
	var inner error
	err = rc.Control(func(fd uintptr) {
		fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
		_, inner = unix.Poll(fds[:], 0)
	})
	if errors.Is(inner, unix.EINTR) {
		inner = nil // nothing is known; the caller's own read sees the end
	}
	if err := errors.Join(err, inner); err != nil {
		return false, fmt.Errorf("poll the peer: %w", err)
	}
	return fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0, nil
}
