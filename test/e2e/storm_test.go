package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

const (
	stormSize = 1 << 30
	stormSeed = 7 // of the pattern
	// strikesEach is how many strikes fall on one file, so that most of it is
	// missing until the last.
	strikesEach = 25
	// stormDeadline is the instance's, in its configuration.
	stormDeadline = 30 * time.Second
	stormLimit    = stormDeadline + 10*time.Second
)

// weather is a storm over files of one daemon.
type weather struct {
	*lacuna
	server *sourcetest.Server
	rng    *rand.Rand
	reader *ondemandtest.Reader
	sum    stormTally
	answer []time.Duration // from a strike to the next read's data
}

func newWeather(t *testing.T) *weather {
	rng := instance.Rand(t)
	w := &weather{
		lacuna: newLacuna(t, fmt.Sprintf("deadline = %q\n", stormDeadline)),
		server: sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), stormSize),
		rng:    rng, reader: ondemandtest.StartReader(t),
	}
	w.StartDaemon()
	return w
}

// strikeTimes lets strike fall n times under 16 readers, on a new file now and then.
func (w *weather) strikeTimes(n int, strike func()) {
	w.t.Helper()
	for file := 0; n > 0; file++ {
		path := filepath.Join(w.Dir, fmt.Sprintf("file%d", file))
		w.Lacuna("attach", fmt.Sprintf("%s?%d", w.server.URL(), file), path)
		w.server.Throttle(5*time.Millisecond, 50e6/8) // 8 connections
		storm := startStorm(w.t, stormOrder{
			Path: path, Pattern: stormSeed, Size: stormSize, Readers: 16, Longest: 256 << 10, Seed: w.rng.Uint64(),
		})
		for range min(n, strikesEach) {
			instance.Pause(time.Duration(w.rng.Int64N(int64(400 * time.Millisecond))))
			struck := time.Now()
			strike()
			n--
			w.probe(path, struck)
		}
		w.server.Throttle(0, 0)
		w.sum.add(storm.finish(stormLimit))
		w.WaitReady()
		s := w.Status()
		w.t.Logf("file %d: %d MiB of %d present at the end", file, s.Attached[0].Present>>20, s.Attached[0].Size>>20)
		w.Lacuna("detach", path)
	}
}

// probe measures how long a read takes that begins when the blow has fallen.
func (w *weather) probe(path string, struck time.Time) {
	w.t.Helper()
	off := w.rng.Int64N(stormSize/4096) * 4096
	select {
	case r := <-w.reader.Start(path, off, 4096):
		w.answer = append(w.answer, time.Since(struck))
		w.sum.Reads++
		w.sum.compare(stormOrder{right: mem.PatternAt(stormSeed)}, off, r.Data, make([]byte, len(r.Data)))
		if r.Errno != 0 || r.Err != nil {
			w.sum.EIO++
			w.sum.example(fmt.Sprintf("probe at %d: %v %v", off, r.Errno, r.Err))
		}
	case <-time.After(stormLimit):
		w.t.Fatalf("the read at %d hangs", off)
	}
}

// judge prints the figures, and fails for anything but right bytes.
func (w *weather) judge(what string) {
	w.t.Helper()
	slices.Sort(w.answer)
	w.t.Logf("%s: %v", what, &w.sum)
	w.t.Logf("from the blow to the next answer: p50 %v, p90 %v, max %v", w.answer[len(w.answer)/2].Round(time.Millisecond),
		w.answer[len(w.answer)*9/10].Round(time.Millisecond), w.answer[len(w.answer)-1].Round(time.Millisecond))
	for _, e := range w.sum.Examples {
		w.t.Log(e)
	}
	if w.sum.Wrong > 0 || w.sum.Other > 0 || w.sum.EIO > 0 || w.sum.Slowest > stormLimit {
		w.t.Errorf("%s: not all reads gave the right bytes in time", what)
	}
	w.Check()
}

func TestWorkerKilledUnderReaders(t *testing.T) {
	w := newWeather(t)
	young := 0
	w.strikeTimes(workerKills, func() {
		pid := w.killWorker(0)
		if w.rng.IntN(4) == 0 { // the next one dies while it starts
			w.killWorker(pid)
			young++
		}
	})
	t.Logf("%d more were killed while they started", young)
	w.judge(fmt.Sprintf("worker killed %d times under 16 readers", workerKills))
}

// killWorker kills a worker other than the given one, as soon as there is one.
func (w *weather) killWorker(other int) int {
	w.t.Helper()
	pid := w.WaitWorker(other)
	instance.Pause(time.Duration(w.rng.Int64N(int64(150 * time.Millisecond))))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	return pid
}

func TestUpgradeUnderReaders(t *testing.T) {
	w := newWeather(t)
	w.strikeTimes(upgrades, func() {
		before := w.WaitWorker(0)
		for range 1 + w.rng.IntN(3) { // the next one may come while the last is under way
			w.replaceBinary()
			w.Signal(syscall.SIGHUP)
			instance.Pause(time.Duration(w.rng.Int64N(int64(60 * time.Millisecond))))
		}
		w.WaitWorker(before)
	})
	if pid := w.Status().KeeperPID; pid != w.Keeper.Process.Pid {
		t.Errorf("the keeper is %d, and was %d", pid, w.Keeper.Process.Pid)
	}
	w.judge(fmt.Sprintf("binary replaced and SIGHUP %d times under 16 readers", upgrades))
}

// replaceBinary puts a copy of the binary in its place, as an upgrade does.
func (i *lacuna) replaceBinary() {
	i.t.Helper()
	b, err := os.ReadFile(i.Bin)
	if err != nil {
		i.t.Fatal(err)
	}
	fresh := i.Bin + ".new"
	if err := os.WriteFile(fresh, b, 0o700); err != nil {
		i.t.Fatal(err)
	}
	if err := os.Rename(fresh, i.Bin); err != nil {
		i.t.Fatal(err)
	}
}
