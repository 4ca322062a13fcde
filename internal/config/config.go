// Package config holds every setting of Lacuna: one Config, with its defaults,
// the TOML file, the environment, and the checks.
//
// What is set on the command line wins over the environment, that over the
// file, and that over the default. A setting has the same name in all four:
// log_format in the file is LACUNA_LOG_FORMAT in the environment and
// --log-format on the command line. The file is read strictly: a key that no
// setting has is an error. The environment and the flags are handed in; this
// package reads neither, and it logs nothing.
//
// Adding a setting: a field in Config and in Partial, a line in defaults, in
// Partial.over, in Partial.apply and in settings. A test compares them.
package config

import (
	"bytes"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Paths of a machine-wide daemon.
const (
	DefaultRoot   = "/var/lib/lacuna"
	DefaultSocket = "/run/lacuna/lacuna.sock"
	DefaultFile   = "/etc/lacuna/config.toml"
)

// Config is every setting with its value. Load makes one that has been checked.
type Config struct {
	// Root is the cache's directory, absolute. Default: DefaultRoot for uid
	// 0, else lacuna in the user's cache directory.
	Root string `toml:"root"`
	// Socket is the control socket's path, absolute. Default: DefaultSocket
	// where Root is DefaultRoot, else lacuna.sock in Root.
	Socket string `toml:"socket"`
	// LogFormat is "text" or "json".
	LogFormat string `toml:"log_format"`
	// Verbose adds debug messages to the log.
	Verbose bool `toml:"verbose"`
	// Memory bounds the bytes that fetching holds at any time, at least 1 MiB.
	Memory Size `toml:"memory"`
	// ConnsPerHost bounds the connections to one server, 1 to 1024.
	ConnsPerHost int `toml:"conns_per_host"`
	// Deadline is how long a reader waits without any progress of what it
	// waits for, 10ms or more.
	Deadline Duration `toml:"deadline"`
	// Stall is how long a source may send nothing before its request is
	// given up and tried again, 10ms or more.
	Stall Duration `toml:"stall"`
}

// Partial is the settings of one origin: flags, environment or file. nil is
// "not set here".
type Partial struct {
	// File is the configuration file's path; it cannot be set in the file.
	File *string `toml:"-"`

	Root         *string   `toml:"root"`
	Socket       *string   `toml:"socket"`
	LogFormat    *string   `toml:"log_format"`
	Verbose      *bool     `toml:"verbose"`
	Memory       *Size     `toml:"memory"`
	ConnsPerHost *int      `toml:"conns_per_host"`
	Deadline     *Duration `toml:"deadline"`
	Stall        *Duration `toml:"stall"`
}

// Load puts together the settings from flags, from the environment as lookup
// answers for it, and from the configuration file, for a process of user uid.
// A file that was asked for must be there; the one at DefaultFile need not.
// Relative paths from flags and environment start at the working directory.
// Errors about a setting are a *SettingError.
func Load(flags Partial, lookup func(string) (string, bool), uid int) (Config, error) {
	env, err := fromEnv(lookup)
	if err != nil {
		return Config{}, err
	}
	set := flags.over(env)
	for _, path := range []*string{set.File, set.Root, set.Socket} {
		if path == nil {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return Config{}, fmt.Errorf("find %s: %w", *path, err)
		}
		*path = abs
	}
	file, err := readFile(set.File)
	if err != nil {
		return Config{}, err
	}
	c := defaults()
	set.over(file).apply(&c)
	if err := c.setPaths(lookup, uid); err != nil {
		return Config{}, err
	}
	return c, c.check()
}

func defaults() Config {
	return Config{
		LogFormat:    "text",
		Memory:       64 * MiB,
		ConnsPerHost: 8,
		Deadline:     Duration(60 * time.Second),
		Stall:        Duration(30 * time.Second),
	}
}

// setPaths chooses the root and the socket where nobody set them.
func (c *Config) setPaths(lookup func(string) (string, bool), uid int) error {
	if c.Root == "" {
		root, err := defaultRoot(lookup, uid)
		if err != nil {
			return err
		}
		c.Root = root
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.Root, "lacuna.sock")
		if c.Root == DefaultRoot {
			c.Socket = DefaultSocket
		}
	}
	return nil
}

// defaultRoot follows the XDG Base Directory Specification 0.8: a relative
// XDG_CACHE_HOME is ignored, and without one it is .cache in the home directory.
func defaultRoot(lookup func(string) (string, bool), uid int) (string, error) {
	if uid == 0 {
		return DefaultRoot, nil
	}
	if dir, ok := lookup("XDG_CACHE_HOME"); ok && filepath.IsAbs(dir) {
		return filepath.Join(dir, "lacuna"), nil
	}
	if home, ok := lookup("HOME"); ok && filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "lacuna"), nil
	}
	return "", &SettingError{
		Setting: "root", Reason: "not set, and neither XDG_CACHE_HOME nor HOME names a directory",
		Advice: "set --root DIR or LACUNA_ROOT",
	}
}

// over is p, with what p lacks taken from under.
func (p Partial) over(under Partial) Partial {
	return Partial{
		File:         pick(p.File, under.File),
		Root:         pick(p.Root, under.Root),
		Socket:       pick(p.Socket, under.Socket),
		LogFormat:    pick(p.LogFormat, under.LogFormat),
		Verbose:      pick(p.Verbose, under.Verbose),
		Memory:       pick(p.Memory, under.Memory),
		ConnsPerHost: pick(p.ConnsPerHost, under.ConnsPerHost),
		Deadline:     pick(p.Deadline, under.Deadline),
		Stall:        pick(p.Stall, under.Stall),
	}
}

// pick returns a copy, so that no caller's value is ever written to.
func pick[T any](a, b *T) *T {
	if a == nil {
		a = b
	}
	if a == nil {
		return nil
	}
	v := *a
	return &v
}

// apply writes what p sets into c.
func (p Partial) apply(c *Config) {
	assign(&c.Root, p.Root)
	assign(&c.Socket, p.Socket)
	assign(&c.LogFormat, p.LogFormat)
	assign(&c.Verbose, p.Verbose)
	assign(&c.Memory, p.Memory)
	assign(&c.ConnsPerHost, p.ConnsPerHost)
	assign(&c.Deadline, p.Deadline)
	assign(&c.Stall, p.Stall)
}

func assign[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

// Encode is c as a configuration file that sets everything.
func (c Config) Encode() ([]byte, error) {
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(c); err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	return b.Bytes(), nil
}
