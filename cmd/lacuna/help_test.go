package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite testdata/help")

// verbs are the commands that the top-level help lists.
func verbs() []string {
	return []string{
		"mount", "umount", "index", "convert", "attach", "detach", "bind", "hydrate", "status", "inspect", "check", "features", "daemon", "stop", "demo", "version",
	}
}

// words are the commands that belong to a verb.
func words() []string { return []string{"index info", "index ls", "index cat"} }

// runApp runs the program in this process.
func runApp(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(args, &app{stdout: &out, stderr: &errs, env: func(string) (string, bool) { return "", false }})
	return out.String(), errs.String(), status
}

// Help is a contract (habit 21): a change of it shows in review.
func TestHelpIsAsCheckedIn(t *testing.T) {
	for _, verb := range slices.Concat([]string{""}, verbs(), words()) {
		t.Run("lacuna "+verb, func(t *testing.T) {
			args := append(strings.Fields(verb), "--help")
			got, stderr, status := runApp(t, args...)
			if status != 0 || stderr != "" {
				t.Fatalf("status %d, stderr %q", status, stderr)
			}
			name := filepath.Join("testdata", "help", strings.ReplaceAll(verb, " ", "-")+".txt")
			if verb == "" {
				name = filepath.Join("testdata", "help", "lacuna.txt")
			}
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("help differs from %s; if that is meant: go test ./cmd/lacuna -run Help -update\n%s", name, got)
			}
			checkHelp(t, verb, got)
		})
	}
}

// checkHelp is what holds for every help text.
func checkHelp(t *testing.T, verb, text string) {
	t.Helper()
	for n, line := range strings.Split(text, "\n") {
		if w := utf8.RuneCountInString(line); w > helpWidth {
			t.Errorf("line %d has %d characters: %s", n+1, w, line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("line %d ends with blanks", n+1)
		}
	}
	if !strings.HasPrefix(text, "Usage: lacuna") {
		t.Error("no synopsis")
	}
	_, exits, ok := strings.Cut(text, "\nEXIT STATUS\n")
	if !ok {
		t.Fatal("no EXIT STATUS")
	}
	for line := range strings.Lines(exits) {
		if !regexp.MustCompile(`^  [0-6]  \S`).MatchString(line) {
			t.Errorf("no status in %q", line)
		}
	}
	for _, status := range []string{"  0  ", "  2  "} {
		if !strings.Contains(exits, status) {
			t.Errorf("status %s is missing", status)
		}
	}
	if verb != "" && verb != "version" && !strings.Contains(text, "\n  # lacuna "+verb) {
		t.Error("no session")
	}
	synopsis, flags, _ := strings.Cut(text, "\nFLAGS")
	synopsis, _, _ = strings.Cut(synopsis, "\n\n")
	for _, flag := range regexp.MustCompile(`(?m)^  (--[a-z-]+)`).FindAllStringSubmatch(flags, -1) {
		if verb != "" && !strings.Contains(synopsis, flag[1]) {
			t.Errorf("%s is missing in the usage", flag[1])
		}
	}
	if global := strings.Count(text, "--log-format"); (verb == "") != (global == 1) {
		t.Errorf("global flags are shown %d times", global)
	}
}

func TestTopLevelHelpListsTheVerbsAndHidesTheRest(t *testing.T) {
	text, _, _ := runApp(t, "--help")
	_, list, _ := strings.Cut(text, "\nCOMMANDS")
	list, _, _ = strings.Cut(list, "\n\n")
	var got []string
	for _, line := range strings.Split(list, "\n")[1:] {
		got = append(got, strings.Fields(line)[0])
	}
	if !slices.Equal(got, verbs()) {
		t.Errorf("commands %v", got)
	}
	files, err := filepath.Glob("testdata/help/*.txt")
	if err != nil || len(files) != len(verbs())+len(words())+1 {
		t.Errorf("%d files in testdata/help, %v", len(files), err)
	}
}
