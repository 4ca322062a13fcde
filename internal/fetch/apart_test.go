package fetch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// readers are requests of a table over a rig.
type readers struct {
	*rig
	table *ondemand.Table
}

func (g *rig) readers(deadline time.Duration) *readers {
	g.t.Helper()
	r := &readers{g, ondemand.NewTable(g.Fetcher, ondemand.TableOptions{Deadline: deadline})}
	g.t.Cleanup(func() {
		if err := r.table.Close(); err != nil {
			g.t.Error(err)
		}
	})
	return r
}

func (r *readers) submit(off, n int64) *filling {
	f := &filling{t: r.t, result: make(chan error, 1), cancel: func() {}}
	r.table.Submit(r.object, ondemand.Range{Off: off, Len: n}, ondemand.Reader{}, func(err error) { f.result <- err })
	return f
}

// A read of a block while somebody else has all of the file fetched makes a
// request of its own, and does not wait on for somebody else's when that stalls.
func TestReadFarAheadInAWholeFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const deadline = time.Minute
		g := newRig(t, 64*mib, nil).readers(deadline)
		all := g.submit(0, 64*mib)
		whole := g.blob.next(t)
		whole.give(1 * mib)
		near, distant, stalled := g.submit(2*mib, 4*kib), g.submit(50*mib, 4*kib), g.submit(30*mib, 4*kib)
		calls := g.blob.all(t)
		if len(calls) != 2 || calls[1].Off != 50*mib {
			t.Fatalf("%d requests", len(calls))
		}
		calls[1].give(16 * kib)
		distant.succeeds()
		whole.give(2 * mib)
		near.succeeds()
		<-time.After(deadline - 1)
		whole.give(1 * mib)
		stalled.sleeps()
		<-time.After(1)
		if stalled.ended() == nil {
			t.Error("answered without data")
		}
		all.sleeps()
		whole.give(64 * mib)
		all.succeeds()
		g.cache.check(t)
	})
}

// A read that came while the request for the whole file waited its turn does not
// wait for it once it runs.
func TestReadFarAheadInARequestThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, func(_ *rig, o *Options) { o.Conns = 2 })
		first, second := g.start(200*mib, 4*kib), g.start(220*mib, 4*kib)
		busy := g.blob.all(t)
		all, distant := g.start(0, 100*mib), g.start(90*mib, 4*kib)
		g.blob.none(t)
		busy[0].give(16 * kib)
		first.succeeds()
		if c := g.blob.next(t); c.Off != 0 {
			t.Fatalf("request %v", c.Range)
		}
		busy[1].give(16 * kib)
		second.succeeds()
		g.blob.next(t).give(16 * kib)
		distant.succeeds()
		all.sleeps()
		all.cancel()
		if all.ended() == nil {
			t.Error("filled without data")
		}
		g.Close()
	})
}
