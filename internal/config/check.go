package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// SettingError tells which setting is wrong, where it was set, and why.
type SettingError struct {
	// Setting is its name as in the file; empty where the file as a whole is wrong.
	Setting string
	// Origin is where it was set: an environment variable, or file:line.
	// Empty where only the value that holds in the end is known.
	Origin string
	// Reason is what is wrong, and Advice what to do about it, if anything.
	Reason, Advice string
	// Err is what the system said; nil where it was not asked.
	Err error
}

// Unwrap is Err.
func (e *SettingError) Unwrap() error { return e.Err }

// Error is "origin: setting: reason".
func (e *SettingError) Error() string {
	parts := make([]string, 0, 3)
	for _, s := range []string{e.Origin, e.Setting, e.Reason} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return "configuration: " + strings.Join(parts, ": ")
}

// Hint is the next step, for the command line to print; empty where there is none.
func (e *SettingError) Hint() string { return e.Advice }

// maxSocketPath is sun_path without its NUL (include/uapi/linux/un.h).
const maxSocketPath = 107

// minDuration refuses, above all, the bare numbers of a TOML file, which are
// nanoseconds there: stall = 30.
const minDuration = Duration(10 * time.Millisecond)

// check is what holds for each value, wherever it was set.
func (c *Config) check() error {
	bad := func(setting, advice, reason string, args ...any) error {
		return &SettingError{Setting: setting, Reason: fmt.Sprintf(reason, args...), Advice: advice}
	}
	switch {
	case !filepath.IsAbs(c.Root):
		return bad("root", "write the whole path, from / on", "%q is not an absolute path", c.Root)
	case filepath.Clean(c.Root) == "/":
		return bad("root", "name a directory of its own, such as "+DefaultRoot, "/ cannot be the cache")
	case !filepath.IsAbs(c.Socket):
		return bad("socket", "write the whole path, from / on", "%q is not an absolute path", c.Socket)
	case len(c.Socket) > maxSocketPath:
		return bad("socket", "choose a shorter path with --socket PATH",
			"%q has %d bytes, a socket's path has at most %d", c.Socket, len(c.Socket), maxSocketPath)
	case c.LogFormat != "text" && c.LogFormat != "json":
		return bad("log_format", "write text or json", "%q is not known", c.LogFormat)
	case c.Memory < MiB:
		return bad("memory", "write 1MiB or more, such as 64MiB", "%s is too little", c.Memory)
	case c.ConnsPerHost < 1 || c.ConnsPerHost > 1024:
		return bad("conns_per_host", "write a number from 1 to 1024", "%d is out of range", c.ConnsPerHost)
	case c.Deadline < minDuration:
		return bad("deadline", "write a number with its unit, such as 60s", "%s is too short", c.Deadline)
	case c.Stall < minDuration:
		return bad("stall", "write a number with its unit, such as 30s", "%s is too short", c.Stall)
	}
	return nil
}
