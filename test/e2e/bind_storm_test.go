package e2e

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// bindStormSize is more than the storms read; hollow files cost nothing.
const bindStormSize = 16 << 30

func (b *bound) storm(rng *rand.Rand) *storm {
	b.t.Helper()
	return startStorm(b.t, stormOrder{
		Path: b.path("blob"), Pattern: stormSeed, Size: bindStormSize, Readers: 16, Longest: 128 << 10, Seed: rng.Uint64(),
	})
}

func (b *bound) judge(what string, tally stormTally) {
	b.t.Helper()
	b.t.Logf("%s: %v", what, &tally)
	if tally.Wrong > 0 || tally.Other > 0 || tally.Slowest > stormLimit || tally.Reads == tally.EIO {
		b.t.Errorf("%s: not all reads gave right bytes or EIO in time", what)
		for _, e := range tally.Examples {
			b.t.Log(e)
		}
	}
}

func TestBindDaemonKilledUnderReaders(t *testing.T) {
	rng := instance.Rand(t)
	b := newBound(t, map[string]int64{"blob": bindStormSize})
	b.connect(fills, 40*time.Millisecond)
	storm := b.storm(rng)
	for range bindKills {
		instance.Pause(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		b.daemon.kill()
		b.connect(fills, 40*time.Millisecond)
	}
	instance.Pause(300 * time.Millisecond)
	b.judge("external daemon killed", storm.finish(stormLimit))
	if s := b.Status(); s.Requests.Pending != 0 || s.Bound[0].Pending != 0 {
		t.Errorf("requests are left: %+v, %+v", s.Requests, s.Bound)
	}
}

func TestBindWorkerKilledUnderReaders(t *testing.T) {
	rng := instance.Rand(t)
	b := newBound(t, map[string]int64{"blob": bindStormSize})
	b.connect(fills, 40*time.Millisecond)
	storm := b.storm(rng)
	for range bindWorkerEnd {
		// Some die before they are ready. Many in a row that do make the
		// keeper deny reads, rightly.
		if rng.IntN(4) > 0 {
			b.WaitReady()
		}
		instance.Pause(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
		if err := syscall.Kill(b.WaitWorker(0), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	instance.Pause(300 * time.Millisecond)
	tally := storm.finish(stormLimit)
	b.judge("worker killed, external daemon connected", tally)
	if tally.EIO > 0 {
		t.Errorf("%d reads got EIO: %v", tally.EIO, tally.Examples)
	}
	if s := b.Status(); s.Bound[0].DaemonPID != b.daemon.Process.Pid {
		t.Errorf("bound: %+v, daemon is %d", s.Bound[0], b.daemon.Process.Pid)
	}
}
