package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OpenProcess returns a descriptor of the process pid: readable once the
// process has ended, whoever its parent is (pidfd_open(2)).
func OpenProcess(pid int) (*FD, error) {
	raw, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return NewFD(raw), nil
}

// SignalProcess sends a signal to the process behind a descriptor of OpenProcess,
// never to another one that has got its number. ESRCH, wrapped: it has ended.
func SignalProcess(process *FD, sig syscall.Signal) error {
	if err := unix.PidfdSendSignal(process.Int(), sig, nil, 0); err != nil {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}

// Peer is who is at the other end of a unix socket, as of connect or socketpair.
type Peer struct {
	PID, UID, GID int
}

// PeerOf reads SO_PEERCRED of the socket conn.
func PeerOf(conn syscall.Conn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, inner); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}, nil
}

// PassCredentials asks for SCM_CREDENTIALS with each message received on conn.
func PassCredentials(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask for credentials: %w", err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err := errors.Join(err, inner); err != nil {
		return fmt.Errorf("ask for credentials: %w", err)
	}
	return nil
}

// ControlMessages are the ancillary data of one message from a unix socket.
type ControlMessages struct {
	// FDs were passed with SCM_RIGHTS; the receiver owns them.
	FDs []*FD
	// PID of the sender from SCM_CREDENTIALS, 0 where the message had none.
	PID int
}

// ParseControl reads the ancillary data oob of a received message. Descriptors
// in it are close-on-exec where the message was received with MSG_CMSG_CLOEXEC,
// as the net package does.
func ParseControl(oob []byte) (ControlMessages, error) {
	var out ControlMessages
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return out, fmt.Errorf("parse ancillary data: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS:
			raws, err := unix.ParseUnixRights(&m)
			if err != nil {
				return out, fmt.Errorf("parse passed descriptors: %w", err)
			}
			for _, raw := range raws {
				out.FDs = append(out.FDs, NewFD(raw))
			}
		case unix.SCM_CREDENTIALS:
			cred, err := unix.ParseUnixCredentials(&m)
			if err != nil {
				return out, fmt.Errorf("parse credentials: %w", err)
			}
			out.PID = int(cred.Pid)
		}
	}
	return out, nil
}

// Exec replaces this process by the program at path. It returns only on error.
func Exec(path string, argv, env []string) error {
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, argv, env))
}

// Monotonic is CLOCK_MONOTONIC: the same clock for all processes, until the
// machine restarts.
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("sys: internal error: no monotonic clock: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// SetTimerSlack lets the timers of all threads of this process, and of threads
// and processes that they make, be late by at most slack (proc_pid_timerslack_ns(5)).
// Without it the kernel rounds every short sleep up by 50 µs, also those that the
// Go scheduler makes before it lets one thread take over another's goroutine.
func SetTimerSlack(slack time.Duration) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	for _, t := range threads {
		name := "/proc/" + t.Name() + "/timerslack_ns"
		err := os.WriteFile(name, strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // the thread has ended
			return fmt.Errorf("set timer slack: %w", err)
		}
	}
	return nil
}
