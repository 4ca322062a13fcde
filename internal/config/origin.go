package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// setting is one setting as text gives it.
type setting struct {
	name string // as in the file
	set  func(p *Partial, text string) error
}

// env is the setting's name in the environment.
func (s setting) env() string { return "LACUNA_" + strings.ToUpper(s.name) }

func settings() []setting {
	return []setting{
		{"config", text(func(p *Partial) **string { return &p.File })},
		{"root", text(func(p *Partial) **string { return &p.Root })},
		{"socket", text(func(p *Partial) **string { return &p.Socket })},
		{"log_format", text(func(p *Partial) **string { return &p.LogFormat })},
		{"verbose", parsed(func(p *Partial) **bool { return &p.Verbose }, parseBool)},
		{"memory", parsed(func(p *Partial) **Size { return &p.Memory }, ParseSize)},
		{"conns_per_host", parsed(func(p *Partial) **int { return &p.ConnsPerHost }, parseInt)},
		{"deadline", parsed(func(p *Partial) **Duration { return &p.Deadline }, ParseDuration)},
		{"stall", parsed(func(p *Partial) **Duration { return &p.Stall }, ParseDuration)},
	}
}

func text(field func(*Partial) **string) func(*Partial, string) error {
	return parsed(field, func(s string) (string, error) { return s, nil })
}

func parsed[T any](field func(*Partial) **T, parse func(string) (T, error)) func(*Partial, string) error {
	return func(p *Partial, s string) error {
		v, err := parse(s)
		if err != nil {
			return err
		}
		*field(p) = &v
		return nil
	}
}

func parseBool(s string) (bool, error) {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", s)
	}
	return v, nil
}

func parseInt(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	return v, nil
}

// fromEnv reads the settings of the environment. An empty variable counts as
// not set, as shells and unit files leave them behind.
func fromEnv(lookup func(string) (string, bool)) (Partial, error) {
	var p Partial
	for _, s := range settings() {
		value, ok := lookup(s.env())
		if !ok || value == "" {
			continue
		}
		if err := s.set(&p, value); err != nil {
			return Partial{}, &SettingError{Setting: s.name, Origin: s.env(), Reason: err.Error()}
		}
	}
	return p, nil
}

// readFile reads the file at path, or the one at DefaultFile where path is nil.
func readFile(path *string) (Partial, error) {
	name := DefaultFile
	if path != nil {
		name = *path
	}
	data, err := os.ReadFile(name)
	if path == nil && errors.Is(err, fs.ErrNotExist) {
		return Partial{}, nil
	}
	if err != nil {
		reason := err
		var path *fs.PathError
		if errors.As(err, &path) {
			reason = path.Err
		}
		return Partial{}, &SettingError{Origin: name, Reason: reason.Error(), Advice: "name another file with --config or LACUNA_CONFIG", Err: err}
	}
	return parseFile(name, data)
}

// parseFile reads a configuration file's bytes; name is for messages.
func parseFile(name string, data []byte) (Partial, error) {
	var p Partial
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return Partial{}, fileError(name, err)
	}
	for _, path := range []struct {
		setting string
		value   *string
	}{{"root", p.Root}, {"socket", p.Socket}} {
		if path.value != nil && !filepath.IsAbs(*path.value) {
			return Partial{}, &SettingError{
				Setting: path.setting, Origin: name, Reason: fmt.Sprintf("%q is not an absolute path", *path.value),
				Advice: "write the whole path, from / on",
			}
		}
	}
	return p, nil
}

// fileError names file, line and key of what the TOML decoder refused.
func fileError(name string, err error) error {
	unknown := new(toml.StrictMissingError)
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := unknown.Errors[0]
		row, _ := first.Position()
		return &SettingError{
			Setting: strings.Join(first.Key(), "."), Origin: fmt.Sprintf("%s:%d", name, row),
			Reason: "no such setting", Advice: "the settings are " + strings.Join(fileKeys(), ", "),
		}
	}
	bad := new(toml.DecodeError)
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		return &SettingError{
			Setting: strings.Join(bad.Key(), "."), Origin: fmt.Sprintf("%s:%d", name, row),
			Reason: strings.TrimPrefix(bad.Error(), "toml: "),
		}
	}
	return &SettingError{Origin: name, Reason: err.Error()}
}

// fileKeys are the settings that a file may have.
func fileKeys() []string {
	var keys []string
	for _, s := range settings() {
		if s.name != "config" {
			keys = append(keys, s.name)
		}
	}
	return keys
}
