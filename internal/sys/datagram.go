package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxPassed is how many descriptors one message can carry
// (include/net/scm.h, SCM_MAX_FD).
const maxPassed = 253

// ListenDatagram makes a unix datagram socket at address, close-on-exec and
// non-blocking, whose messages tell their sender's pid. An address that starts
// with @ is abstract: it has no file, and no permissions either.
func ListenDatagram(address string) (*FD, error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	raw, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return nil, fmt.Errorf("make a datagram socket: %w", err)
	}
	fd := NewFD(raw)
	if err := unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("ask for credentials: %w", err), fd.Close())
	}
	if err := unix.Bind(raw, &unix.SockaddrUnix{Name: address}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", address, err), fd.Close())
	}
	return fd, nil
}

// PeekSender is the pid of the process that sent the next message on socket,
// which stays queued. EAGAIN, wrapped: there is none. Descriptors in the
// message do not enter this process's table: the room for ancillary data ends
// behind the credentials, which the kernel writes first (net/core/scm.c,
// scm_recv).
func PeekSender(socket *FD) (int, error) {
	d, err := receive(socket, make([]byte, 1), unix.CmsgSpace(unix.SizeofUcred), unix.MSG_PEEK)
	return d.PID, err
}

// Datagram is one received message.
type Datagram struct {
	ControlMessages
	// Bytes are the message, as far as the buffer had room.
	Bytes []byte
	// Truncated: bytes or descriptors did not fit, the latter also when this
	// process may not open more of them.
	Truncated bool
}

// ReceiveDatagram takes the next message off socket. EAGAIN, wrapped: there is
// none. Descriptors in it are the caller's, and close-on-exec.
func ReceiveDatagram(socket *FD, buf []byte) (Datagram, error) {
	return receive(socket, buf, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxPassed), 0)
}

// DropDatagram takes the next message off socket without letting its
// descriptors into this process's table. Closing one of them here could block
// for as long as the filesystem behind it likes.
func DropDatagram(socket *FD) error {
	_, err := receive(socket, make([]byte, 1), unix.CmsgSpace(unix.SizeofUcred), 0)
	return err
}

func receive(socket *FD, buf []byte, room, flags int) (Datagram, error) {
	oob := make([]byte, room)
	flags |= unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC
	for {
		n, oobn, got, _, err := unix.Recvmsg(socket.Int(), buf, oob, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Datagram{}, fmt.Errorf("receive a message: %w", err)
		}
		ctl, err := ParseControl(oob[:oobn])
		return Datagram{
			ControlMessages: ctl,
			Bytes:           buf[:n],
			Truncated:       got&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0,
		}, err
	}
}

// SameOpenFile tells whether the numbers a and b are duplicates of each other:
// one open file, not merely one inode, which all anonymous descriptors share.
func SameOpenFile(a, b int) (bool, error) {
	// F_DUPFD_QUERY is Linux 6.10 (include/uapi/linux/fcntl.h), kcmp needs CONFIG_KCMP.
	same, err := unix.FcntlInt(uintptr(a), unix.F_DUPFD_QUERY, b)
	if err == nil {
		return same == 1, nil
	}
	const kcmpFile = 0 // include/uapi/linux/kcmp.h, KCMP_FILE
	pid := unix.Getpid()
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(pid), kcmpFile, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		return false, fmt.Errorf("compare descriptors %d and %d: %w", a, b, errno)
	}
	return order == 0, nil
}

// SendDatagram sends payload with duplicates of the descriptors raws to the
// unix datagram socket at address. It waits at most seconds for room in the
// receiver's queue, then fails with EAGAIN, wrapped.
func SendDatagram(address string, payload []byte, raws []int, seconds int) error {
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a datagram socket: %w", err)
	}
	fd := NewFD(raw)
	limit := unix.Timeval{Sec: int64(seconds)}
	if err := unix.SetsockoptTimeval(raw, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return errors.Join(fmt.Errorf("limit the sending time: %w", err), fd.Close())
	}
	var oob []byte
	if len(raws) > 0 {
		oob = unix.UnixRights(raws...)
	}
	for {
		err := unix.Sendmsg(raw, payload, oob, &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("send to %s: %w", address, err)
		}
		return errors.Join(err, fd.Close())
	}
}
