package fetch

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// ordered is several objects of one server without ranges.
type ordered struct {
	*Fetcher
	t     *testing.T
	blobs []*scripted
	ids   []ondemand.ObjectID
}

func newOrdered(t *testing.T, n, conns int) *ordered {
	t.Helper()
	g := &ordered{t: t, Fetcher: New(Options{
		Conns: conns, Group: func(ondemand.ObjectID, source.Blob) string { return "one server" },
	})}
	t.Cleanup(g.Close)
	for i := range n {
		k := newKept(8 * mib)
		k.id = ondemand.ObjectID(fmt.Sprint(i))
		b := &scripted{size: k.size, ordered: true}
		if _, err := g.Add(k, b); err != nil {
			t.Fatal(err)
		}
		g.blobs, g.ids = append(g.blobs, b), append(g.ids, k.id)
	}
	return g
}

func (g *ordered) start(i int, off int64) *filling {
	f := &filling{t: g.t, result: make(chan error, 1), cancel: func() {}}
	go func() { f.result <- g.Fill(g.t.Context(), g.ids[i], ondemand.Range{Off: off, Len: 4 * kib}) }()
	synctest.Wait()
	return f
}

// Downloads that nobody reads make room for a demand, but no more of them than
// it takes, and none that is read.
func TestOrderedStreamsWithoutReadersLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOrdered(t, 6, 4)
		var calls []*call
		for i := range 4 {
			f := g.start(i, 0)
			calls = append(calls, g.blobs[i].next(t))
			calls[i].give(64 * kib)
			f.succeeds()
		}
		reader := g.start(0, 4*mib) // comes back
		fifth := g.start(4, 0)
		g.blobs[4].none(t)
		give := func() (closed int) {
			for _, c := range calls {
				if !c.isClosed() {
					c.give(64 * kib)
				}
				if c.isClosed() {
					closed++
				}
			}
			return closed
		}
		if n := give(); n != 0 {
			t.Errorf("%d ended at once", n)
		}
		fifth.sleeps()
		<-time.After(yieldAfter)
		if n := give(); n != 1 || calls[0].isClosed() {
			t.Errorf("%d ended for one demand; the one that is read: %v", n, calls[0].isClosed())
		}
		c := g.blobs[4].next(t)
		c.give(64 * kib)
		fifth.succeeds()
		if n := give(); n != 1 {
			t.Errorf("%d ended", n)
		}
		reader.sleeps()
		calls[0].give(8 * mib)
		reader.succeeds()
	})
}

// Idle downloads within the share of read-ahead end for nobody.
func TestOrderedStreamsKeepTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOrdered(t, 3, 2)
		idle := g.start(0, 0)
		kept := g.blobs[0].next(t)
		kept.give(64 * kib)
		idle.succeeds()
		busy := g.start(1, 0)
		c := g.blobs[1].next(t)
		waits := g.start(2, 0)
		<-time.After(2 * yieldAfter)
		kept.give(64 * kib)
		if kept.isClosed() {
			t.Error("the share of read-ahead was taken away")
		}
		waits.sleeps()
		c.give(8 * mib)
		busy.succeeds()
		g.blobs[2].next(t).give(8 * mib)
		waits.succeeds()
	})
}

// hydrate begins to hydrate object i.
func (g *ordered) hydrate(i int) *filling {
	ctx, cancel := context.WithCancel(g.t.Context())
	f := &filling{t: g.t, result: make(chan error, 1), cancel: cancel}
	go func() { f.result <- g.Hydrate(ctx, g.ids[i], nil) }()
	synctest.Wait()
	return f
}

// Hydrates of ordered blobs take their share and wait for each other, so that a
// demand waits for none of them, also one for a blob that they have not begun.
func TestHydratesOfOrderedSourcesLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOrdered(t, 4, 2)
		first, second, third := g.hydrate(0), g.hydrate(1), g.hydrate(2)
		c := g.blobs[0].next(t)
		g.blobs[1].none(t)
		demand, other := g.start(1, 0), g.start(3, 0)
		d := g.blobs[1].next(t)
		g.blobs[3].none(t)
		d.give(64 * kib)
		demand.succeeds()
		// The second has no reader any more and is one too many. The first, which
		// never had one, goes on.
		<-time.After(yieldAfter)
		c.give(64 * kib)
		d.give(64 * kib)
		if c.isClosed() || !d.isClosed() {
			t.Fatalf("ended: the first: %v, the second: %v", c.isClosed(), d.isClosed())
		}
		third.cancel()
		third.sleepsNot()
		g.blobs[3].next(t).give(8 * mib)
		other.succeeds()
		g.blobs[1].none(t)
		c.give(8 * mib)
		first.succeeds()
		g.blobs[1].next(t).give(8 * mib)
		second.succeeds()
		g.blobs[2].none(t)
	})
}

// However many Hydrates of ordered blobs there are and however slow the source is,
// each downloads its blob once.
func TestHydratesOfOrderedSourcesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3
		g := newOrdered(t, n, 2)
		var hydrates []*filling
		for i := range n {
			hydrates = append(hydrates, g.hydrate(i))
		}
		var running []*call
		for range n * 8 {
			<-time.After(2 * yieldAfter)
			for _, b := range g.blobs {
				running = append(running, b.all(t)...)
			}
			for _, c := range running {
				if !c.isClosed() {
					c.give(1 * mib)
				}
			}
		}
		for i, f := range hydrates {
			f.succeeds()
			if s := g.Stats(g.ids[i]); s.Requests != 1 || s.Fetched != 8*mib {
				t.Errorf("%d bytes were fetched in %d requests", s.Fetched, s.Requests)
			}
		}
	})
}

// A far read of an ordered blob, and one of much at once, sleep past the
// table's deadline as long as data comes, and end when none does.
func TestDataThatFlowsIsWaitedFor(t *testing.T) {
	const deadline = time.Minute
	for _, ordered := range []bool{true, false} {
		t.Run(fmt.Sprint("ordered ", ordered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, 32*mib, func(g *rig, _ *Options) { g.blob.ordered = ordered })
				table := ondemand.NewTable(g.Fetcher, ondemand.TableOptions{Deadline: deadline})
				defer func() {
					if err := table.Close(); err != nil {
						t.Error(err)
					}
				}()
				r := ondemand.Range{Len: 32 * mib}
				if ordered {
					r = ondemand.Range{Off: 30 * mib, Len: 4 * kib}
				}
				answer := make(chan error, 1)
				table.Submit(g.object, r, ondemand.Reader{}, func(err error) { answer <- err })
				c := g.blob.next(t)
				for range 10 {
					<-time.After(deadline - time.Second)
					c.give(100 * kib)
				}
				if len(answer) != 0 {
					t.Fatalf("answered while data came: %v", <-answer)
				}
				<-time.After(deadline - 1)
				if len(answer) != 0 {
					t.Fatalf("answered before the deadline: %v", <-answer)
				}
				<-time.After(1)
				synctest.Wait()
				if len(answer) != 1 || <-answer == nil {
					t.Fatal("sleeps on though nothing comes")
				}
			})
		})
	}
}

// What comes slower than a block in a deadline is not waited for.
func TestTrickleIsNotWaitedFor(t *testing.T) {
	const deadline = time.Minute
	for step, waited := range map[int64]bool{1: false, 2 * kib: true} {
		t.Run(fmt.Sprint(step, " bytes in half a deadline"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, 32*mib, nil).readers(deadline)
				read := g.submit(0, 1*mib)
				c := g.blob.next(t)
				for range 10 {
					<-time.After(deadline/2 - time.Second)
					c.give(step)
				}
				if waited {
					read.sleeps()
					c.give(1 * mib)
					read.succeeds()
				} else if read.ended() == nil {
					t.Error("answered without data")
				}
			})
		})
	}
}
