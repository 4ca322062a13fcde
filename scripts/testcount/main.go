// Command testcount runs `go test -json` and counts: one line for each package
// as it ends, the output of every test that failed, the reason of every test
// that was skipped, and as its last line
//
//	N passed, N failed, N skipped
//
// over all passes. Each -pass is the arguments of one run of go test. Counted
// are the leaves: a test with subtests counts through them. A package that
// fails outside its tests (it does not build, panics in TestMain, leaks) counts
// as one failure. The exit status is 0 only when something ran and nothing failed.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

func main() {
	var passes []string
	flag.Func("pass", "arguments of one run of go test, separated by spaces (may be repeated)", func(s string) error {
		passes = append(passes, s)
		return nil
	})
	flag.Parse()
	if flag.NArg() > 0 || len(passes) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	t := newTally(os.Stdout)
	ok := true
	for _, pass := range passes {
		if err := t.run(strings.Fields(pass)); err != nil {
			fmt.Fprintf(os.Stderr, "testcount: %v\n", err)
			ok = false
		}
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if !ok || t.failed > 0 || t.passed == 0 {
		os.Exit(1)
	}
}

// run is one pass. Its error is a run that ended badly although no failure was
// seen in what it printed.
func (t *tally) run(args []string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = io.MultiWriter(os.Stderr, &stderr)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	before := t.failed
	readErr := t.read(out)
	waitErr := cmd.Wait()
	t.unfinished()
	if waitErr != nil && t.failed > before {
		waitErr = nil
	}
	if err := errors.Join(readErr, waitErr); err != nil {
		return fmt.Errorf("go test %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// read takes events until the stream ends. Lines that are no events, such as
// go's own messages, are printed as they are.
func (t *tally) read(r io.Reader) error {
	dec := newLines(r)
	for {
		line, err := dec.next()
		if len(line) > 0 {
			var e event
			if line[0] != '{' || json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(t.w, "%s\n", line)
			} else {
				t.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
