package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// env answers lookups from a map.
func env(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDefaultsOfRoot(t *testing.T) {
	none := writeFile(t, "")
	got, err := Load(Partial{File: &none}, env(nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Root: DefaultRoot, Socket: DefaultSocket, LogFormat: "text", Memory: 64 << 20,
		ConnsPerHost: 8, Deadline: Duration(time.Minute), Stall: Duration(30 * time.Second),
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestDefaultPaths(t *testing.T) {
	none := writeFile(t, "")
	tests := []struct {
		name         string
		uid          int
		vars         map[string]string
		root, socket string
	}{
		{"cache directory", 7, map[string]string{"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/lacuna", "/c/lacuna/lacuna.sock"},
		{"home", 7, map[string]string{"HOME": "/h"}, "/h/.cache/lacuna", "/h/.cache/lacuna/lacuna.sock"},
		{"relative cache directory is ignored", 7, map[string]string{"XDG_CACHE_HOME": "c", "HOME": "/h"}, "/h/.cache/lacuna", "/h/.cache/lacuna/lacuna.sock"},
		{"root with another cache", 0, map[string]string{"LACUNA_ROOT": "/srv/x"}, "/srv/x", "/srv/x/lacuna.sock"},
		{"user with the machine's cache", 7, map[string]string{"LACUNA_ROOT": DefaultRoot}, DefaultRoot, DefaultSocket},
		{"empty variable is not set", 0, map[string]string{"LACUNA_ROOT": "", "LACUNA_SOCKET": "/s"}, DefaultRoot, "/s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(Partial{File: &none}, env(tt.vars), tt.uid)
			if err != nil {
				t.Fatal(err)
			}
			if got.Root != tt.root || got.Socket != tt.socket {
				t.Errorf("root %s, socket %s; want %s, %s", got.Root, got.Socket, tt.root, tt.socket)
			}
		})
	}
	if _, err := Load(Partial{File: &none}, env(nil), 7); err == nil {
		t.Error("no home directory: no error")
	}
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	name := writeFile(t, "memory = '1MiB'\nconns_per_host = 2\nlog_format = 'json'\nverbose = true\n")
	flag := 3 * MiB
	got, err := Load(Partial{Memory: &flag}, env(map[string]string{
		"LACUNA_CONFIG": name, "LACUNA_MEMORY": "2MiB", "LACUNA_CONNS_PER_HOST": "3", "LACUNA_VERBOSE": "false",
	}), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got.Memory != 3*MiB || got.ConnsPerHost != 3 || got.LogFormat != "json" || got.Verbose || got.Stall != Duration(30*time.Second) {
		t.Errorf("got %+v", got)
	}
}

func TestRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	none, root := writeFile(t, ""), "cache"
	got, err := Load(Partial{File: &none, Root: &root}, env(nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(wd, "cache"); got.Root != want {
		t.Errorf("root %s, want %s", got.Root, want)
	}
	if root != "cache" {
		t.Errorf("the caller's value became %s", root)
	}
}

func TestBadFilesNameFileLineAndKey(t *testing.T) {
	tests := []struct{ name, text, want, hint string }{
		{"unknown key", "root = '/c'\nmemry = '1MiB'\n", "FILE:2: memry: no such setting", "memory, conns_per_host"},
		{"unknown table", "[cache]\nroot = '/c'\n", "FILE:1: cache", ""},
		{"the file itself", "config = '/x'\n", "FILE:1: config: no such setting", ""},
		{"wrong type", "\nverbose = 'yes'\n", "FILE:2: verbose: ", ""},
		{"bad size", "\nmemory = '64 megabytes'\n", `"64 megabytes" is not a size such as 64MiB`, ""},
		{"bad duration", "stall = '30'\n", `"30" is not a time such as 30s`, ""},
		{"no TOML", "root /c\n", "FILE:1: ", ""},
		{"twice", "root = '/c'\nroot = '/d'\n", "FILE", ""},
		{"duration without a unit", "stall = 30\n", "stall: 30ns is too short", "30s"},
		{"relative root", "root = 'c'\n", `FILE: root: "c" is not an absolute path`, "whole path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := writeFile(t, tt.text)
			_, err := Load(Partial{File: &name}, env(nil), 0)
			bad := new(SettingError)
			if !errors.As(err, &bad) {
				t.Fatalf("got %v", err)
			}
			want := strings.ReplaceAll(tt.want, "FILE", name)
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("several lines: %q", err.Error())
			}
			if !strings.Contains(bad.Hint(), tt.hint) {
				t.Errorf("hint %q lacks %q", bad.Hint(), tt.hint)
			}
		})
	}
}

func TestBadValues(t *testing.T) {
	none := writeFile(t, "")
	tests := []struct{ variable, value, want string }{
		{"LACUNA_MEMORY", "64MB", `LACUNA_MEMORY: memory: "64MB" is not a size`},
		{"LACUNA_MEMORY", "1KiB", "memory: 1KiB is too little"},
		{"LACUNA_MEMORY", "-1MiB", "is not a size"},
		{"LACUNA_MEMORY", "9999999TiB", "too large"},
		{"LACUNA_CONNS_PER_HOST", "0", "conns_per_host: 0 is out of range"},
		{"LACUNA_CONNS_PER_HOST", "many", `"many" is not a whole number`},
		{"LACUNA_VERBOSE", "loud", `LACUNA_VERBOSE: verbose: "loud" is neither true nor false`},
		{"LACUNA_DEADLINE", "-1s", "deadline: -1s is too short"},
		{"LACUNA_STALL", "0", "stall: 0s is too short"},
		{"LACUNA_LOG_FORMAT", "xml", `log_format: "xml" is not known`},
		{"LACUNA_ROOT", "/", "root: / cannot be the cache"},
		{"LACUNA_SOCKET", "/" + strings.Repeat("s", 107), "has 108 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.variable+"="+tt.value[:min(len(tt.value), 12)], func(t *testing.T) {
			_, err := Load(Partial{File: &none}, env(map[string]string{tt.variable: tt.value}), 0)
			bad := new(SettingError)
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestFileThatWasAskedForMustExist(t *testing.T) {
	name := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(Partial{File: &name}, env(nil), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// A setting that one of the lists forgets cannot be set, or is lost on the way.
func TestEverySettingIsInEveryList(t *testing.T) {
	names := func(typ reflect.Type) (names []string) {
		for f := range typ.NumField() {
			if name := typ.Field(f).Tag.Get("toml"); name != "-" {
				names = append(names, name)
			}
		}
		return names
	}
	inConfig, inPartial := names(reflect.TypeFor[Config]()), names(reflect.TypeFor[Partial]())
	if !slices.Equal(inConfig, inPartial) || !slices.Equal(inConfig, fileKeys()) {
		t.Errorf("Config has %v\nPartial has %v\nsettings has %v", inConfig, inPartial, fileKeys())
	}
}

func genConfig() *rapid.Generator[Config] {
	return rapid.Custom(func(t *rapid.T) Config {
		path := rapid.StringMatching(`/[a-z ."'\\é]{1,20}[a-z]`)
		return Config{
			Root:         filepath.Clean(path.Draw(t, "root")),
			Socket:       filepath.Clean(path.Draw(t, "socket")),
			LogFormat:    rapid.SampledFrom([]string{"text", "json"}).Draw(t, "log_format"),
			Verbose:      rapid.Bool().Draw(t, "verbose"),
			Memory:       Size(rapid.Int64Min(int64(MiB)).Draw(t, "memory")),
			ConnsPerHost: rapid.IntRange(1, 1024).Draw(t, "conns_per_host"),
			Deadline:     Duration(rapid.Int64Min(int64(minDuration)).Draw(t, "deadline")),
			Stall:        Duration(rapid.Int64Min(int64(minDuration)).Draw(t, "stall")),
		}
	})
}

func TestEncodedConfigLoadsAsItself(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		want := genConfig().Draw(t, "config")
		text, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "config.toml")
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Load(Partial{File: &name}, env(nil), 7)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if got != want {
			t.Fatalf("got  %+v\nwant %+v\n%s", got, want, text)
		}
	})
}

func TestEnvironmentLoadsAsItself(t *testing.T) {
	none := writeFile(t, "")
	rapid.Check(t, func(t *rapid.T) {
		want := genConfig().Draw(t, "config")
		vars := map[string]string{}
		v := reflect.ValueOf(want)
		for i := range v.NumField() {
			name := setting{name: v.Type().Field(i).Tag.Get("toml")}.env()
			vars[name] = textOf(v.Field(i).Interface())
		}
		got, err := Load(Partial{File: &none}, env(vars), 7)
		if err != nil {
			t.Fatalf("%v\n%v", err, vars)
		}
		if got != want {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	})
}
