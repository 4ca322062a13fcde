package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json, and go help
// buildjson for the build's own).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string // of a package's fail: the ImportPath whose build failed
}

// pkg is what is known of a package whose tests run.
type pkg struct {
	results map[string]string // test name -> pass, fail, skip; "" while it runs
	output  map[string]*strings.Builder
}

// tally adds up the results of all packages of all passes.
type tally struct {
	w                       io.Writer
	passed, failed, skipped int
	pkgs                    map[string]*pkg
	builds                  map[string]*strings.Builder // output of builds
}

func newTally(w io.Writer) *tally {
	return &tally{w: w, pkgs: map[string]*pkg{}, builds: map[string]*strings.Builder{}}
}

func (t *tally) pkg(name string) *pkg {
	p := t.pkgs[name]
	if p == nil {
		p = &pkg{results: map[string]string{}, output: map[string]*strings.Builder{}}
		t.pkgs[name] = p
	}
	return p
}

func (t *tally) take(e event) {
	switch e.Action {
	case "build-output":
		add(t.builds, e.ImportPath, e.Output)
		return
	case "start", "build-fail":
		return
	}
	p := t.pkg(e.Package)
	switch e.Action {
	case "run":
		p.results[e.Test] = ""
	case "output":
		add(p.output, e.Test, e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			p.results[e.Test] = e.Action
			return
		}
		t.end(p, e)
		delete(t.pkgs, e.Package)
	}
}

func add(m map[string]*strings.Builder, key, text string) {
	b := m[key]
	if b == nil {
		b = new(strings.Builder)
		m[key] = b
	}
	b.WriteString(text)
}

// end counts a package that has ended and prints what is worth reading of it.
func (t *tally) end(p *pkg, e event) {
	parents := map[string]bool{}
	badChild := map[string]bool{}
	for name, result := range p.results {
		for i, c := range name {
			if c != '/' {
				continue
			}
			parents[name[:i]] = true
			if result == "fail" || result == "" {
				badChild[name[:i]] = true
			}
		}
	}
	var passed, failed, skipped int
	for _, name := range slices.Sorted(maps.Keys(p.results)) {
		result := p.results[name]
		bad := result == "fail" || result == ""
		switch {
		case parents[name] && !bad:
			// Its subtests count.
		case result == "pass":
			passed++
		case result == "skip":
			skipped++
			t.print("SKIP", e.Package, name, p.output[name])
		case badChild[name]:
			t.print("FAIL", e.Package, name, p.output[name])
		default:
			failed++
			t.print("FAIL", e.Package, name, p.output[name])
		}
	}
	if e.Action == "fail" && (failed == 0 || e.FailedBuild != "") {
		failed++
		t.print("FAIL", e.Package, "(package)", t.builds[e.FailedBuild])
		t.print("FAIL", e.Package, "(package)", p.output[""])
	}
	t.passed, t.failed, t.skipped = t.passed+passed, t.failed+failed, t.skipped+skipped
	if passed+failed+skipped > 0 {
		fmt.Fprintf(t.w, "%-4s %s: %d passed, %d failed, %d skipped in %.1fs\n",
			e.Action, e.Package, passed, failed, skipped, e.Elapsed)
	}
}

// unfinished counts the packages of a pass that has ended without a word on them.
func (t *tally) unfinished() {
	for _, name := range slices.Sorted(maps.Keys(t.pkgs)) {
		t.end(t.pkgs[name], event{Action: "fail", Package: name})
	}
	clear(t.pkgs)
}

func (t *tally) print(what, pkg, test string, output *strings.Builder) {
	if output == nil {
		return
	}
	fmt.Fprintf(t.w, "--- %s: %s %s\n", what, pkg, test)
	for line := range strings.Lines(output.String()) {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprintf(t.w, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
}

// lines cuts a stream into lines of any length.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) lines { return lines{bufio.NewReader(r)} }

// next returns the next line without its end; at the end of the stream io.EOF,
// with what came after the last line end.
func (l lines) next() ([]byte, error) {
	line, err := l.r.ReadBytes('\n')
	return bytes.TrimSuffix(line, []byte("\n")), err
}
