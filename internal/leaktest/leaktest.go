// Package leaktest ends a test binary with a look at what its tests have left
// behind: goroutines, descriptors, mounts and temporary files.
//
// A package adopts it with
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
//
// A test binary that starts itself again in another role must see to that role
// before it calls Main.
package leaktest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/goleak"
)

// M is what is run: a *testing.M.
type M interface{ Run() int }

// patience is how long what the tests have ended may take to go away: a child's
// pipes, or a connection that its other end has closed.
const patience = 3 * time.Second

// Main runs the tests and ends the process with the status of Run.
func Main(m M) { os.Exit(Run(m, os.Stderr)) }

// Run runs the tests and returns their status. Where they have passed and left
// something behind, it says to w what that is, and returns 1.
//
// TMPDIR is a directory of the run's own meanwhile, so that tests of other
// packages that run at the same time are not looked at.
func Run(m M, w io.Writer) (status int) { return run(m, w, patience) }

func run(m M, w io.Writer, patience time.Duration) (status int) {
	report := func(err error) {
		if err == nil {
			return
		}
		if _, failed := fmt.Fprintln(w, "leaktest:", err); failed != nil || status == 0 {
			status = 1
		}
	}
	dir, restore, err := ownTempDir()
	if err != nil {
		report(err)
		return status
	}
	// The runtime makes its poller's descriptors at the first use of one.
	report(touchPoller())
	before, err := descriptors()
	report(err)
	if status == 0 {
		status = m.Run()
	}
	if status == 0 {
		report(goleak.Find())
		report(eventually(patience, func() error { return sameDescriptors(before) }))
		report(eventually(patience, func() error { return noMounts(dir) }))
	}
	left, err := os.ReadDir(dir)
	report(err)
	if status == 0 && len(left) > 0 {
		report(fmt.Errorf("temporary files are left: %v", left))
	}
	report(restore())
	if noMounts(dir) == nil { // else it would remove what is mounted
		report(os.RemoveAll(dir))
	}
	return status
}

// ownTempDir makes a directory and TMPDIR lead to it.
func ownTempDir() (dir string, restore func() error, err error) {
	old, had := os.LookupEnv("TMPDIR")
	// A short name: paths of sockets lie below it.
	if dir, err = os.MkdirTemp("", "lt"); err != nil {
		return "", nil, err
	}
	// Other users may pass, as they may in the system's own.
	err = errors.Join(os.Chmod(dir, 0o711), os.Setenv("TMPDIR", dir))
	return dir, func() error {
		if had {
			return os.Setenv("TMPDIR", old)
		}
		return os.Unsetenv("TMPDIR")
	}, err
}

func touchPoller() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	return errors.Join(r.Close(), w.Close())
}

// eventually calls check until it returns nil or patience is over.
func eventually(patience time.Duration, check func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for {
		err := check()
		if err == nil || time.Now().After(end) {
			return err
		}
		<-tick.C
	}
}

// descriptors are the open ones of this process: "number -> what".
func descriptors() (map[string]bool, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := make(map[string]bool)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // the one that listed the directory
		}
		if err != nil {
			return nil, err
		}
		if !isProfile(target) {
			open[e.Name()+" -> "+target] = true
		}
	}
	return open, nil
}

// isProfile tells whether the testing package writes a profile to target, which
// it leaves open.
func isProfile(target string) bool {
	for _, name := range []string{"test.cpuprofile", "test.trace"} {
		if f := flag.Lookup(name); f != nil && filepath.Base(f.Value.String()) == filepath.Base(target) {
			return true
		}
	}
	return false
}

func sameDescriptors(before map[string]bool) error {
	now, err := descriptors()
	if err != nil {
		return err
	}
	var lines []string
	for d := range now {
		if !before[d] {
			lines = append(lines, "  still open: "+d)
		}
	}
	for d := range before {
		if !now[d] {
			lines = append(lines, "  closed by a test: "+d)
		}
	}
	if len(lines) > 0 {
		return fmt.Errorf("descriptors differ from the start:\n%s", strings.Join(lines, "\n"))
	}
	return nil
}

// noMounts fails where something is mounted below dir.
func noMounts(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(info)) {
		// Field 5 is the mount point (proc_pid_mountinfo(5)).
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			lines = append(lines, "  "+f[4])
		}
	}
	if len(lines) > 0 {
		return fmt.Errorf("mounts are left:\n%s", strings.Join(lines, "\n"))
	}
	return nil
}
