package depcheck

import (
	"bytes"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxLines  = 600
	goodLines = 400
)

// files are the repository's checked-in files, by their path from the root. In
// a copy without git they are all files but those below dot directories and bin.
func files(t *testing.T) []string {
	t.Helper()
	dir := root(t)
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = dir
	if out, err := cmd.Output(); err == nil && len(out) > 0 {
		return strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	}
	var names []string
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != dir && (d.Name() == "bin" || strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.Type().IsRegular():
			rel, err := filepath.Rel(dir, name)
			names = append(names, rel)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// texts are the checked-in files that are text, with their content. A file
// that is deleted but not yet committed is passed over.
func texts(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range files(t) {
		b, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if utf8.Valid(b) && !bytes.Contains(b, []byte{0}) {
			all[name] = b
		}
	}
	if len(all) == 0 {
		t.Fatal("no text in the repository")
	}
	return all
}

func TestGoFilesAreOfReadableLength(t *testing.T) {
	for name, b := range texts(t) {
		n := bytes.Count(b, []byte("\n"))
		switch {
		case path.Ext(name) != ".go":
		case n > maxLines:
			t.Errorf("%s has %d lines, more than %d", name, n, maxLines)
		case n > goodLines:
			t.Logf("%s has %d lines; %d are enough for one thing", name, n, goodLines)
		}
	}
}

// What says nothing about what a package holds, or names with a second word
// what docs/glossary.md has a word for.
var antiTerms = []string{
	"util", "utils", "common", "base", "helper", "helpers", "misc", "shared", "lib", "pkg", "types", "core",
	"manager", "service", "store", "storage", "backend", "driver", "provider", "remote", "mode", "bootstrap", "evict", "gc", "fs",
}

func TestPackagesAreNamedForWhatTheyHold(t *testing.T) {
	for _, p := range ourPackages(t) {
		name, _ := short(p.ImportPath)
		for part := range strings.SplitSeq(name, "/") {
			if slices.Contains(antiTerms, part) {
				t.Errorf("package %s: %q is not a name for it", name, part)
			}
		}
	}
}

// machinePath finds absolute paths that only one machine has: a home
// directory, or the places of a checkout. The word in front, if any, makes it
// part of something else, such as a URL.
var machinePath = regexp.MustCompile(`(?:^|[^\w.~/-])(/(?:` + "work|farm|home/[a-z]|root/[a-z]" + `)[\w./-]*)`)

func TestNoTextHoldsPathsOfOneMachine(t *testing.T) {
	for name, b := range texts(t) {
		if strings.HasPrefix(name, "internal/depcheck/") {
			continue
		}
		for i, line := range strings.Split(string(b), "\n") {
			if m := machinePath.FindStringSubmatch(line); m != nil {
				t.Errorf("%s:%d: %s", name, i+1, m[1])
			}
		}
	}
}

func TestMachinePathsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"see /work/main/x.go": "/work/main/x.go", "`/farm/a`": "/farm/a", "\"/home/ann/src\"": "/home/ann/src", "/root/go/bin": "/root/go/bin",
		"docs/work/x": "", "https://example.org/work/x": "", "/var/lib/lacuna": "", "workspace": "", "./farm/x": "", "/root": "",
	} {
		got := ""
		if m := machinePath.FindStringSubmatch(text); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
