package keeper

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// maxMessage is the size of the largest message in bytes, as systemd has
	// it (src/core/manager.c, NOTIFY_BUFFER_MAX: PIPE_BUF).
	maxMessage = 4096
	// maxName is the length of the longest descriptor name in bytes
	// (sd_pid_notify_with_fds(3), FDNAME=).
	maxName = 255
	// unnamed is what systemd calls a descriptor pushed without FDNAME=.
	unnamed = "stored"
	// maxExtend is the longest time that a message asks for.
	maxExtend = 24 * time.Hour
)

var (
	// ErrBadName tells of a descriptor name that the protocol has no place for.
	ErrBadName = errors.New("bad descriptor name")
	// ErrBadMessage tells of a message that is not one of the protocol.
	ErrBadMessage = errors.New("malformed message")
)

// CheckName tells whether name can name a held descriptor: 1 to 255 printable
// ASCII characters, no colon, which separates names in LISTEN_FDNAMES.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: %d characters", ErrBadName, len(name))
	}
	for i := range len(name) {
		if c := name[i]; c < ' ' || c >= 0x7f || c == ':' {
			return fmt.Errorf("%w: %q", ErrBadName, name)
		}
	}
	return nil
}

// message is what a keeper understands of one datagram.
type message struct {
	ready, stopping       bool
	push, remove, barrier bool
	name                  string // for push and remove, never empty there
	status                string // empty: none
	// extend is how much longer the worker may take for what it is at; 0: it does not say.
	extend time.Duration
}

// parseMessage reads the lines of a datagram. What the protocol has and this
// keeper has no use for is passed over, as sd_notify(3) asks.
func parseMessage(payload []byte) (message, error) {
	var m message
	if len(payload) > maxMessage || !utf8.Valid(payload) {
		return m, fmt.Errorf("%w: %d bytes", ErrBadMessage, len(payload))
	}
	text := strings.TrimSuffix(string(payload), "\n")
	for line := range strings.SplitSeq(text, "\n") {
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsFunc(line, unicode.IsControl) {
			return message{}, fmt.Errorf("%w: line %q", ErrBadMessage, line)
		}
		switch {
		case line == "READY=1":
			m.ready = true
		case line == "STOPPING=1":
			m.stopping = true
		case line == "FDSTORE=1":
			m.push = true
		case line == "FDSTOREREMOVE=1":
			m.remove = true
		case line == "BARRIER=1":
			m.barrier = true
		case key == "STATUS":
			m.status = value
		case key == "EXTEND_TIMEOUT_USEC":
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil || n > uint64(maxExtend.Microseconds()) {
				return message{}, fmt.Errorf("%w: line %q", ErrBadMessage, line)
			}
			m.extend = time.Duration(n) * time.Microsecond //nolint:gosec // it is at most maxExtend
		case key == "FDNAME":
			if err := CheckName(value); err != nil {
				return message{}, fmt.Errorf("%w: %w", ErrBadMessage, err)
			}
			m.name = value
		}
	}
	return m, m.check()
}

func (m *message) check() error {
	switch {
	case m.push && m.remove:
		return fmt.Errorf("%w: push and remove at once", ErrBadMessage)
	case m.barrier && *m != message{barrier: true}:
		// sd_notify(3): BARRIER=1 must be the only field.
		return fmt.Errorf("%w: barrier with other fields", ErrBadMessage)
	case m.remove && m.name == "":
		return fmt.Errorf("%w: remove without a name", ErrBadMessage)
	case m.push && m.name == "":
		m.name = unnamed
	case !m.push && !m.remove:
		m.name = ""
	}
	return nil
}

// encode is the inverse of parseMessage.
func (m message) encode() []byte {
	var lines []string
	add := func(on bool, line string) {
		if on {
			lines = append(lines, line)
		}
	}
	add(m.ready, "READY=1")
	add(m.stopping, "STOPPING=1")
	// FDPOLL=0: systemd would otherwise drop a descriptor as soon as poll
	// reports a hang-up on it, which a mount that is gone does.
	add(m.push, "FDSTORE=1\nFDPOLL=0")
	add(m.remove, "FDSTOREREMOVE=1")
	add(m.name != "", "FDNAME="+m.name)
	add(m.barrier, "BARRIER=1")
	add(m.status != "", "STATUS="+m.status)
	add(m.extend > 0, "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(m.extend.Microseconds(), 10))
	return []byte(strings.Join(lines, "\n"))
}
