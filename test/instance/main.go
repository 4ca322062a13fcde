// Package instance runs the built binary for tests: each Instance has a cache root
// of its own, and what it leaves behind is a failure.
//
// The cache roots lie below /var/tmp, because /tmp may be a tmpfs, which has no
// pre-content events. Each instance runs a binary of its own name below its
// test's directory, by which its processes are found and ended, also when a
// test has failed half way.
package instance

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random choices; 0: from the clock")

// place is where this run's files lie; set by Main.
var place struct{ dir, binary string }

// Main builds the binary, runs the tests, looks for what they have left, and ends
// the process. Roles that the test binary has besides come before it.
func Main(m *testing.M) { os.Exit(leaktest.Run(run{m}, os.Stderr)) }

// run is the tests with what they share around them.
type run struct{ m *testing.M }

// Run is leaktest's.
func (r run) Run() (status int) {
	sweepDead()
	dir, err := os.MkdirTemp(parent, prefix)
	var held *os.File
	if err == nil {
		held, err = hold(dir)
	}
	if err == nil {
		defer func() {
			if err := held.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "instance:", err)
				status = 1
			}
		}()
		place.dir, place.binary = dir, filepath.Join(dir, "lacuna")
		err = build(place.binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "instance:", errors.Join(err, os.RemoveAll(dir)))
		return 1
	}
	status = r.m.Run()
	if err := errors.Join(Sweep(dir), os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, "instance: left behind:", err)
		status = max(status, 1)
	}
	return status
}

// Directories of runs.
const parent, prefix = "/var/tmp", "lacuna-run-"

// hold marks dir as that of a run that goes on; the end of the process unmarks it.
func hold(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweepDead ends what runs have left that were killed, or ran out of time. A run
// that is just beginning may not hold its directory yet.
func sweepDead() {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	for _, dir := range dirs {
		st, gone := os.Stat(dir)
		if gone != nil || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		held, taken := hold(dir)
		if taken != nil {
			continue
		}
		left := Sweep(dir)
		fmt.Fprintln(os.Stderr, "instance: swept", dir, "of a run that was killed:", left)
		err = errors.Join(err, os.RemoveAll(dir), held.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "instance:", err)
	}
}

func build(binary string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "github.com/lacunafs/lacuna/cmd/lacuna")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build lacuna: %w: %s", err, out)
	}
	return nil
}

// Dir makes a directory on the filesystem that instances use, which goes with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(place.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Shared is a file that all tests of this run have, and none changes. What makes
// it is called once.
func Shared(t testing.TB, name string, make func(path string) error) string {
	t.Helper()
	path := filepath.Join(place.dir, "shared-"+name)
	if _, err := os.Stat(path); err != nil {
		if err := errors.Join(make(path+".new"), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// Rand returns random choices whose seed is in the log.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (repeat with -seed)", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// Pause lets d pass: the moment at which a storm strikes is not to be in step
// with anything.
func Pause(d time.Duration) { <-time.After(d) }

// Eventually waits until check is content, and fails with its last error.
func Eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still after %v: %v", limit, err)
		}
		Pause(10 * time.Millisecond)
	}
}
