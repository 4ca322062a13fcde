package proto

import (
	"bytes"
	"strconv"
	"strings"
	"syscall"
)

// MaxCommand is the longest command in bytes, as the device has it: a page
// less one byte (fs/cachefiles/daemon.c, cachefiles_daemon_write).
const MaxCommand = 4095

// Verb names a command.
type Verb string

// The commands.
const (
	Dir  Verb = "dir"  // dir PATH: the directory that the daemon means to serve
	Tag  Verb = "tag"  // tag NAME: a name for the daemon, for status
	Bind Verb = "bind" // bind: from now on requests are handed out
	Done Verb = "done" // done ID [ERRNO]: the range is filled, or cannot be
	File Verb = "fd"   // fd ID: send a descriptor of the backing file
	Sync Verb = "sync" // sync: say when all commands before this one are through
	// Open is no command: it names the connecting itself in answers.
	Open Verb = "open"
)

// unsupported are the device's commands that have no meaning here: there is
// nothing to cull, and no cache to run.
var unsupported = []string{"brun", "bcull", "bstop", "cull", "debug", "frun", "fcull", "fstop", "inuse", "secctx"}

// Command is one command as it was understood.
type Command struct {
	Verb Verb
	// Arg is the path of dir or the name of tag.
	Arg string
	// ID is the request that done and fd name.
	ID uint64
	// Errno is why the daemon cannot fill, 0 where it has filled.
	Errno syscall.Errno
}

// Name is the command as answers name it: the verb, and the request's id
// where it has one.
func (c Command) Name() string {
	if c.Verb == Done || c.Verb == File {
		return string(c.Verb) + " " + strconv.FormatUint(c.ID, 10)
	}
	return string(c.Verb)
}

// Refuse is the answer that refuses c.
func (c Command) Refuse(errno syscall.Errno, reason string) *RefusedError {
	return &RefusedError{Errno: errno, Command: c.Name(), Reason: reason}
}

// ParseCommand reads one message. One newline and one NUL may end it, as echo
// and C programs send them. A refusal is a *RefusedError.
func ParseCommand(msg []byte) (Command, error) {
	if len(msg) > MaxCommand {
		return Command{}, refuse("command", syscall.EOPNOTSUPP, "longer than "+strconv.Itoa(MaxCommand)+" bytes")
	}
	msg = bytes.TrimSuffix(msg, []byte{0})
	msg = bytes.TrimSuffix(msg, []byte{'\n'})
	if len(msg) == 0 {
		return Command{}, refuse("command", syscall.EINVAL, "empty")
	}
	if bytes.ContainsAny(msg, "\n\x00") {
		return Command{}, refuse("command", syscall.EINVAL, "more than one command in a message")
	}
	word, arg, _ := strings.Cut(string(msg), " ")
	switch verb := Verb(word); verb {
	case Bind, Sync:
		if arg != "" {
			return Command{}, refuse(word, syscall.EINVAL, "takes no argument")
		}
		return Command{Verb: verb}, nil
	case Dir, Tag:
		if arg == "" {
			return Command{}, refuse(word, syscall.EINVAL, "argument missing")
		}
		return Command{Verb: verb, Arg: arg}, nil
	case Done, File:
		return parseRequest(verb, arg)
	}
	for _, name := range unsupported {
		if word == name {
			return Command{}, refuse(word, syscall.EOPNOTSUPP, "not a command of this devnode")
		}
	}
	return Command{}, refuse("command", syscall.EINVAL, "no such command")
}

func parseRequest(verb Verb, arg string) (Command, error) {
	word, status, more := strings.Cut(arg, " ")
	id, ok := parseNumber(word)
	if !ok {
		return Command{}, refuse(string(verb), syscall.EINVAL, "no request id")
	}
	c := Command{Verb: verb, ID: id}
	if !more {
		return c, nil
	}
	if verb != Done {
		return Command{}, c.Refuse(syscall.EINVAL, "text behind the request id")
	}
	if c.Errno, ok = parseErrno(status); !ok {
		return Command{}, c.Refuse(syscall.EINVAL, "no errno behind the request id")
	}
	return c, nil
}

// parseNumber reads an unsigned number as C's base 0 does: 0x and hexadecimal
// digits, 0 and octal digits, or decimal; no sign, no underscore.
func parseNumber(s string) (uint64, bool) {
	radix := 10
	switch {
	case len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X'):
		s, radix = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		s, radix = s[1:], 8
	}
	n, err := strconv.ParseUint(s, radix, 64)
	return n, err == nil
}
