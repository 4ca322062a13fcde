package ondemand

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

func TestDeadline(t *testing.T) {
	onBench(t, func(b *bench) {
		fresh, old, over := b.submit(span(0, 1)), b.submitTo(b.o, span(2, 1), deadline-time.Second), b.submitTo(b.o, span(4, 1), 2*deadline)
		b.wants(over, context.DeadlineExceeded)
		<-time.After(time.Second)
		b.wants(old, context.DeadlineExceeded)
		<-time.After(deadline - time.Second - 1)
		b.sleeps(fresh)
		<-time.After(1)
		b.wants(fresh, context.DeadlineExceeded)
		b.counts(TableStats{Expired: 3, Fills: 3})
		if n := len(b.h.running()); n != 0 {
			t.Errorf("%d fills run for nobody", n)
		}
	})
}

// A request sleeps on while a fill that it needs makes progress, and no longer.
func TestDeadlineRunsFromTheLastProgress(t *testing.T) {
	onBench(t, func(b *bench) {
		served, stalled := b.submit(span(0, 9)), b.submit(span(20, 1))
		both := b.submit(span(8, 3)) // needs the first fill, and one of its own
		fills := b.h.running()
		for range 3 {
			<-time.After(deadline - 1)
			Progress(fills[0].ctx)
			b.sleeps(served, both)
		}
		b.wants(stalled, context.DeadlineExceeded)
		<-time.After(deadline - 1)
		b.sleeps(served, both)
		<-time.After(1)
		b.wants(served, context.DeadlineExceeded)
		b.wants(both, context.DeadlineExceeded)
		b.counts(TableStats{Expired: 3, Fills: 3, Coalesced: 1})
		Progress(fills[0].ctx)
		Progress(t.Context())
		// What was slept elsewhere counts until there is progress here.
		old := b.submitTo(b.o, span(0, 1), deadline-time.Second)
		Progress(b.h.running()[0].ctx)
		<-time.After(deadline - 1)
		b.sleeps(old)
		<-time.After(1)
		b.wants(old, context.DeadlineExceeded)
	})
}

// The request of a reader that is gone ends soon, however much data comes for it,
// and the fill with it unless another needs it.
func TestRequestOfAReaderThatIsGoneEnds(t *testing.T) {
	onBench(t, func(b *bench) {
		var dead atomic.Bool
		reader := Reader{Alive: func() bool {
			b.mu.Lock() // asked without it
			defer b.mu.Unlock()
			return !dead.Load()
		}}
		submit := func(r Range) chan error {
			c := make(chan error, 2)
			b.Submit(b.o, r, reader, func(err error) { c <- err })
			return c
		}
		alone, shared, other := submit(span(0, 9)), submit(span(20, 1)), b.submit(span(20, 1))
		fills := b.h.running()
		for range 3 {
			<-time.After(deadline - 1)
			for _, f := range fills {
				Progress(f.ctx)
			}
			b.sleeps(alone, shared, other)
		}
		dead.Store(true)
		<-time.After(5 * time.Second)
		b.wants(alone, ErrGone)
		b.wants(shared, ErrGone)
		b.sleeps(other)
		if left := b.h.running(); len(left) != 1 || left[0] != fills[1] {
			b.Fatalf("fills %v", left)
		}
		fills[1].done(b.o)
		b.wants(other, nil)
		b.counts(TableStats{Filled: 1, Gone: 2, Fills: 2, Coalesced: 1})
	})
}

// Who is asked and lives has the deadline of everybody.
func TestDeadlineOfALivingReader(t *testing.T) {
	onBench(t, func(b *bench) {
		c := make(chan error, 2)
		b.Submit(b.o, span(0, 1), Reader{Waited: time.Second, Alive: func() bool { return true }}, func(err error) { c <- err })
		<-time.After(deadline - time.Second - 1)
		b.sleeps(c)
		<-time.After(1)
		b.wants(c, context.DeadlineExceeded)
	})
}
