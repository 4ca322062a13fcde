package ondemand

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// onAgainBench is onBench with readers that ask again.
func onAgainBench(t *testing.T, run func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := new(held)
		again := func(id ObjectID, failed Range) Range {
			if id != "one" {
				return Range{}
			}
			if end := span(8000, 0).Off; failed.Off >= end { // which comes from elsewhere
				return Range{Off: end, Len: 1 << 60}
			}
			return Range{Len: span(8000, 0).Off}
		}
		b := &bench{t, NewTable(h, TableOptions{Deadline: deadline, Again: again}), h, newObject("one", 10000)}
		defer func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}()
		run(b)
	})
}

func (b *bench) expired(c chan error) bool {
	b.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		if !errors.Is(err, context.DeadlineExceeded) {
			b.Errorf("it ended with %v", err)
		}
		return true
	default:
		return false
	}
}

func TestWhoAsksAgainDoesNotWaitAgain(t *testing.T) {
	onAgainBench(t, func(b *bench) {
		c := b.submit(span(100, 16))
		<-time.After(deadline)
		if !b.expired(c) {
			t.Fatal("it waits on")
		}
		for _, r := range []Range{span(100, 1), span(116, 16), span(300, 16), span(40, 8)} {
			if !b.expired(b.submit(r)) {
				t.Errorf("%v waits", r)
			}
		}
		far, other := b.submit(span(5000, 16)), b.submitTo(newObject("two", 10000), span(100, 1), 0)
		if b.expired(far) || b.expired(other) {
			t.Error("what lies elsewhere has failed")
		}
		<-time.After(time.Second)
		if b.expired(b.submit(span(100, 1))) {
			t.Error("the failure holds on")
		}
	})
}

func TestWhatHasFailedIsAskedForOnceDataComes(t *testing.T) {
	onAgainBench(t, func(b *bench) {
		c := b.submit(span(100, 16))
		<-time.After(deadline)
		if !b.expired(c) {
			t.Fatal("it waits on")
		}
		b.o.Set(span(7000, 1))
		b.Present("one", span(7000, 1))
		if b.expired(b.submit(span(100, 16))) {
			t.Error("the failure holds on")
		}
	})
}

func TestAFailureThatNobodyWaitedForIsNotHeld(t *testing.T) {
	onAgainBench(t, func(b *bench) {
		broken := errors.New("broken")
		for range 3 {
			c := b.submit(span(100, 1))
			for _, f := range b.h.running() {
				f.end <- broken
			}
			b.wants(c, broken)
		}
		c := b.submit(span(100, 1))
		<-time.After(2 * time.Second)
		for _, f := range b.h.running() {
			f.end <- broken
		}
		b.wants(c, broken)
		b.wants(b.submit(span(100, 1)), broken)
	})
}

func TestFailureSpeaksForItsOwnPart(t *testing.T) {
	onAgainBench(t, func(b *bench) {
		c := b.submit(span(8000, 1))
		<-time.After(deadline)
		if !b.expired(c) || !b.expired(b.submit(span(8001, 1))) {
			t.Error("it waits on")
		}
		if b.expired(b.submit(span(7999, 1))) {
			t.Error("what comes from elsewhere has failed")
		}
	})
}
