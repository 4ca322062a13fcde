package proto

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

// maxAnswer keeps answers shorter than a record.
const maxAnswer = RecordSize - 1

// ErrAnswer tells of a message that is neither a record nor an answer.
var ErrAnswer = errors.New("malformed answer")

// RefusedError is the devnode's answer to a command, or to a connection
// (Command "open"), that it refuses.
type RefusedError struct {
	Errno syscall.Errno
	// Command is the verb, followed by the request's id for done and fd.
	Command string
	Reason  string
}

func refuse(command string, errno syscall.Errno, reason string) *RefusedError {
	return &RefusedError{Errno: errno, Command: command, Reason: reason}
}

// Error is the message with the errno's name.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: %s (%s)", e.Command, e.Reason, ErrnoName(e.Errno))
}

// Unwrap is the errno, for errors.Is.
func (e *RefusedError) Unwrap() error { return e.Errno }

// Encode is the answer as it is sent: error NUMBER NAME COMMAND: REASON, on
// one line and shorter than a record.
func (e *RefusedError) Encode() []byte {
	s := fmt.Sprintf("error %d %s %s: %s", int(e.Errno), ErrnoName(e.Errno), e.Command, e.Reason)
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	return []byte(s[:min(len(s), maxAnswer)])
}

// Answers that are no refusals.
const okSync = "ok sync"

// Answer is one message from the devnode that is no record: exactly one of the
// fields is set.
type Answer struct {
	Refused *RefusedError
	// Synced answers sync.
	Synced bool
	// File answers fd: the id of the request whose descriptor comes along.
	File *uint64
}

// Encode is the answer as it is sent.
func (a Answer) Encode() []byte {
	switch {
	case a.Refused != nil:
		return a.Refused.Encode()
	case a.File != nil:
		return []byte(Command{Verb: File, ID: *a.File}.Name())
	}
	return []byte(okSync)
}

// ParseAnswer reads what Encode wrote.
func ParseAnswer(msg []byte) (Answer, error) {
	s := string(msg)
	if len(s) > maxAnswer {
		return Answer{}, fmt.Errorf("%w: %d bytes", ErrAnswer, len(s))
	}
	word, rest, _ := strings.Cut(s, " ")
	switch {
	case s == okSync:
		return Answer{Synced: true}, nil
	case word == string(File):
		if id, err := strconv.ParseUint(rest, 10, 64); err == nil {
			return Answer{File: &id}, nil
		}
	case word == "error":
		number, rest, _ := strings.Cut(rest, " ")
		_, rest, _ = strings.Cut(rest, " ")
		command, reason, ok := strings.Cut(rest, ": ")
		if n, err := strconv.ParseUint(number, 10, 12); err == nil && ok {
			return Answer{Refused: refuse(command, syscall.Errno(n), reason)}, nil
		}
	}
	return Answer{}, fmt.Errorf("%w: %q", ErrAnswer, s)
}
