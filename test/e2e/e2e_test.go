// Package e2e runs the built binary: real instances, real servers, real readers
// in processes of their own, and real deaths of any of them.
//
// The cache roots lie below /var/tmp, because /tmp may be a tmpfs, which has no
// pre-content events. Each instance runs a binary of its own name below its
// test's directory, by which its processes are found and ended, also when a
// test has failed half way. The storms are long with the build tag long.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random choices; 0: from the clock")

// where this run's files lie; set by TestMain.
var place struct{ dir, binary string }

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	beStormReader()
	beHolder()
	beDaemon()
	beMany()
	os.Exit(leaktest.Run(run{m}, os.Stderr))
}

// run is the tests with what they share around them.
type run struct{ m *testing.M }

// Run builds the binary, runs the tests, and looks for what they have left.
func (r run) Run() (status int) {
	dir, err := os.MkdirTemp("/var/tmp", "lacuna-e2e-")
	if err == nil {
		place.dir, place.binary = dir, filepath.Join(dir, "lacuna")
		err = build(place.binary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", errors.Join(err, os.RemoveAll(dir)))
		return 1
	}
	status = r.m.Run()
	if err := errors.Join(sweep(dir), os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: left behind:", err)
		status = max(status, 1)
	}
	return status
}

func build(binary string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "github.com/lacunafs/lacuna/cmd/lacuna")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build lacuna: %w: %s", err, out)
	}
	return nil
}

// newRand returns random choices whose seed is in the log.
func newRand(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (repeat with -seed)", seed)
	return rand.New(rand.NewPCG(seed, 1)), seed
}

// pause lets d pass: the moment at which a storm strikes is not to be in step
// with anything.
func pause(d time.Duration) { <-time.After(d) }

// eventually waits until check is content, and fails with its last error.
func eventually(t *testing.T, limit time.Duration, check func() error) {
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
		pause(10 * time.Millisecond)
	}
}
