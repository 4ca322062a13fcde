package ondemand

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// object is a Presence with a name, which counts what the table asks it.
type object struct {
	*Presence
	id    ObjectID
	asked atomic.Int64 // calls of Missing
	panic atomic.Bool  // Missing panics
	apart bool         // FillsApart
}

func newObject(id string, blocks int64) *object {
	return &object{Presence: NewPresence(blocks * BlockSize), id: ObjectID(id)}
}

func (o *object) ID() ObjectID { return o.id }

func (o *object) FillsApart() bool { return o.apart }

func (o *object) Missing(r Range) []Range {
	o.asked.Add(1)
	if o.panic.Load() {
		panic("in Missing")
	}
	return o.Presence.Missing(r)
}

// span is the range of blocks [first, first+n).
func span(first, n int64) Range { return Range{Off: first * BlockSize, Len: n * BlockSize} }

type fillFunc func(context.Context, ObjectID, Range) error

func (f fillFunc) Fill(ctx context.Context, id ObjectID, r Range) error { return f(ctx, id, r) }

// held is a Filler whose fills wait until the test ends them.
type held struct {
	mu    sync.Mutex
	fills []*heldFill
}

type heldFill struct {
	id  ObjectID
	r   Range
	ctx context.Context
	end chan error
}

func (h *held) Fill(ctx context.Context, id ObjectID, r Range) error {
	f := &heldFill{id: id, r: r, ctx: ctx, end: make(chan error, 1)}
	h.mu.Lock()
	h.fills = append(h.fills, f)
	h.mu.Unlock()
	select {
	case err := <-f.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// running are the fills whose context has not ended, in order of offset. Inside
// synctest it has waited for every fill that was started.
func (h *held) running() (out []*heldFill) {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.fills {
		if f.ctx.Err() == nil {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *heldFill) int { return int(a.r.Off - b.r.Off) })
	return out
}

// bench is a table in a synctest bubble with an object of 100 blocks.
type bench struct {
	*testing.T
	*Table
	h *held
	o *object
}

const deadline = time.Minute

func onBench(t *testing.T, run func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := new(held)
		b := &bench{t, NewTable(h, TableOptions{Deadline: deadline}), h, newObject("one", 100)}
		defer func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}()
		run(b)
	})
}

// submit enters a request; its answers go to the channel.
func (b *bench) submit(r Range) chan error { return b.submitTo(b.o, r, 0) }

func (b *bench) submitTo(o *object, r Range, waited time.Duration) chan error {
	c := make(chan error, 2)
	b.Submit(o, r, Reader{Waited: waited}, func(err error) { c <- err })
	return c
}

// wants fails unless c has exactly one answer, which is want (nil, or an error
// that it wraps).
func (b *bench) wants(c chan error, want error) {
	b.Helper()
	synctest.Wait()
	if len(c) != 1 {
		b.Fatalf("%d answers", len(c))
	}
	if err := <-c; !errors.Is(err, want) {
		b.Fatalf("answer %v, want %v", err, want)
	}
}

func (b *bench) sleeps(cs ...chan error) {
	b.Helper()
	synctest.Wait()
	for i, c := range cs {
		if len(c) != 0 {
			b.Fatalf("request %d was answered: %v", i, <-c)
		}
	}
}

// counts fails unless the table's counters, latency left out, are want.
func (b *bench) counts(want TableStats) {
	b.Helper()
	synctest.Wait()
	got := b.Stats()
	got.P50, got.P99 = 0, 0
	if got != want {
		b.Fatalf("counters %+v, want %+v", got, want)
	}
}

func (f *heldFill) done(o *object) {
	o.Set(f.r)
	f.end <- nil
}

func TestOverlappingRequestsShareFills(t *testing.T) {
	type ranges = []Range
	for _, c := range []struct {
		name                     string
		present, requests, fills ranges
		coalesced                uint64
	}{
		{"apart", nil, ranges{span(0, 2), span(10, 3)}, ranges{span(0, 2), span(10, 3)}, 0},
		{"touching", nil, ranges{span(0, 2), span(2, 2)}, ranges{span(0, 2), span(2, 2)}, 0},
		{"equal", nil, ranges{span(5, 2), span(5, 2), span(5, 2)}, ranges{span(5, 2)}, 2},
		{"inside", nil, ranges{span(0, 10), span(3, 2)}, ranges{span(0, 10)}, 1},
		{"around", nil, ranges{span(3, 2), span(0, 10)}, ranges{span(0, 3), span(3, 2), span(5, 5)}, 1},
		{"over the end", nil, ranges{span(0, 4), span(2, 4)}, ranges{span(0, 4), span(4, 2)}, 1},
		{"over the start", nil, ranges{span(4, 4), span(2, 4)}, ranges{span(2, 2), span(4, 4)}, 1},
		{"bridge", nil, ranges{span(0, 2), span(6, 2), span(1, 6)}, ranges{span(0, 2), span(2, 4), span(6, 2)}, 1},
		{"over three", nil, ranges{span(1, 1), span(3, 1), span(5, 1), span(0, 7)},
			ranges{span(0, 1), span(1, 1), span(2, 1), span(3, 1), span(4, 1), span(5, 1), span(6, 1)}, 1},
		{"islands of data", ranges{span(2, 1), span(5, 2)}, ranges{span(0, 9)}, ranges{span(0, 2), span(3, 2), span(7, 2)}, 0},
		{"data under both", ranges{span(4, 1)}, ranges{span(0, 6), span(3, 5)}, ranges{span(0, 4), span(5, 1), span(6, 2)}, 1},
		{"all present", ranges{span(0, 9)}, ranges{span(0, 9)}, nil, 0},
		{"the end", nil, ranges{span(98, 2), span(99, 1)}, ranges{span(98, 2)}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				for _, r := range c.present {
					b.o.Set(r)
				}
				var answers []chan error
				for _, r := range c.requests {
					answers = append(answers, b.submit(r))
				}
				var got ranges
				fills := b.h.running()
				for _, f := range fills {
					got = append(got, f.r)
				}
				if fmt.Sprint(got) != fmt.Sprint(c.fills) {
					t.Errorf("fills %v, want %v", got, c.fills)
				}
				if s := b.Stats(); s.Coalesced != c.coalesced || s.Fills != uint64(len(c.fills)) {
					t.Errorf("counters %+v", s)
				}
				for _, f := range fills {
					f.done(b.o)
				}
				for _, a := range answers {
					b.wants(a, nil)
				}
			})
		})
	}
}

func TestWokenWhenItsBlocksArePresent(t *testing.T) {
	onBench(t, func(b *bench) {
		big, head, tail := b.submit(span(0, 10)), b.submit(span(0, 2)), b.submit(span(8, 2))
		f := b.h.running()[0]
		b.o.Set(span(0, 2))
		b.Present("one", span(0, 2))
		b.wants(head, nil)
		b.o.Set(span(5, 5))
		b.Present("one", span(5, 5))
		b.wants(tail, nil)
		b.sleeps(big)
		b.Present("another", span(0, 10))
		b.Present("one", span(20, 10))
		b.sleeps(big)
		f.done(b.o)
		b.wants(big, nil)
		b.counts(TableStats{Filled: 3, Coalesced: 2, Fills: 1})
	})
}

// A fill that goes on for hours remembers those who wait, not all who ever did.
func TestALongFillForgetsRequestsThatHaveEnded(t *testing.T) {
	onBench(t, func(b *bench) {
		all := b.submit(span(0, 100))
		f := b.h.running()[0]
		for block := range int64(99) {
			early := b.submit(span(block, 1))
			b.o.Set(span(block, 1))
			b.Present("one", span(block, 1))
			b.wants(early, nil)
		}
		if n := len(b.objects["one"].levels[0][0].requests); n != 1 {
			t.Errorf("the fill holds %d requests of which one is pending", n)
		}
		f.done(b.o)
		b.wants(all, nil)
	})
}

func TestFillErrorEndsOnlyWhoNeedsItsMissingBlocks(t *testing.T) {
	onBench(t, func(b *bench) {
		head, all, other := b.submit(span(0, 2)), b.submit(span(0, 8)), b.submit(span(20, 1))
		fills := b.h.running() // [0,2), [2,8), [20,21)
		broken := errors.New("broken")
		fills[1].end <- broken
		b.wants(all, broken)
		b.sleeps(head, other)
		fills[0].done(b.o)
		b.wants(head, nil)
		b.counts(TableStats{Pending: 1, Filled: 1, Failed: 1, Coalesced: 1, Fills: 3})
	})
}

// A fill that brings a part and then fails: who has all of theirs reads it.
func TestFailedFillStillGivesWhatItBrought(t *testing.T) {
	onBench(t, func(b *bench) {
		head, all := b.submit(span(0, 1)), b.submit(span(0, 4))
		fills := b.h.running()
		b.o.Set(span(0, 4)) // the first brings more than it was asked for
		fills[0].end <- errors.New("broken afterwards")
		b.wants(head, nil)
		b.wants(all, nil)
		if fills[1].ctx.Err() == nil {
			t.Error("a fill runs on for what is present")
		}
	})
}

func TestDoneWithoutDataIsAnError(t *testing.T) {
	onBench(t, func(b *bench) {
		c := b.submit(span(0, 4))
		b.o.Set(span(0, 3))
		b.h.running()[0].end <- nil
		b.wants(c, ErrNotFilled)
		b.counts(TableStats{Failed: 1, Fills: 1})
	})
}

func TestUnwantedFillIsCancelledAndANewcomerStartsAfresh(t *testing.T) {
	onBench(t, func(b *bench) {
		first := b.submit(span(0, 4))
		old := b.h.running()[0]
		b.Flush("one", ErrDetached)
		b.wants(first, ErrDetached)
		if old.ctx.Err() == nil {
			t.Fatal("nobody wants the fill, and it runs on")
		}
		second := b.submit(span(0, 4))
		fills := b.h.running()
		if len(fills) != 1 || fills[0] == old {
			t.Fatalf("fills %v", fills)
		}
		b.sleeps(second)
		fills[0].done(b.o)
		b.wants(second, nil)
	})
}

// The old fill ends, with its error, only after the newcomer has come.
func TestEndOfACancelledFillDoesNotTouchANewcomer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		letGo, fill := make(chan struct{}), make(chan struct{})
		var n atomic.Int64
		o := newObject("one", 10)
		table := NewTable(fillFunc(func(ctx context.Context, _ ObjectID, r Range) error {
			if n.Add(1) == 1 {
				<-ctx.Done()
				<-letGo
				return ctx.Err()
			}
			<-fill
			o.Set(r)
			return nil
		}), TableOptions{Deadline: deadline})
		b := &bench{t, table, nil, o}
		first := b.submit(span(0, 4))
		b.sleeps(first)
		b.Flush("one", ErrDetached)
		b.wants(first, ErrDetached)
		second := b.submit(span(0, 4))
		b.sleeps(second)
		close(letGo)
		b.sleeps(second)
		close(fill)
		b.wants(second, nil)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLatencyCountsTheSleepBefore(t *testing.T) {
	onBench(t, func(b *bench) {
		c := b.submitTo(b.o, span(0, 1), 8*time.Second)
		<-time.After(2 * time.Second)
		b.h.running()[0].done(b.o)
		b.wants(c, nil)
		if p := b.Stats().P50; p < 10*time.Second || p > 13*time.Second {
			t.Errorf("p50 %v", p)
		}
	})
}

// Blocks that were present when the request came are cleared while it waits for
// others: it goes on waiting, and they are filled.
func TestClearedBlocksAreFilledAgain(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o.Set(span(0, 5))
		c := b.submit(span(0, 10))
		f := b.h.running()[0]
		if f.r != span(5, 5) {
			t.Fatalf("fill %v", f.r)
		}
		b.o.Clear(span(1, 1))
		f.done(b.o)
		b.sleeps(c)
		again := b.h.running()
		if len(again) != 1 || again[0].r != span(1, 1) {
			t.Fatalf("fills %v", again)
		}
		again[0].done(b.o)
		b.wants(c, nil)
	})
}

func TestFlushLeavesOtherObjects(t *testing.T) {
	onBench(t, func(b *bench) {
		other := newObject("two", 10)
		mine, theirs := b.submit(span(0, 1)), b.submitTo(other, span(0, 1), 0)
		b.Flush("one", ErrDetached)
		b.wants(mine, ErrDetached)
		b.sleeps(theirs)
		fills := b.h.running()
		if len(fills) != 1 || fills[0].id != "two" {
			t.Fatalf("fills %v", fills)
		}
		fills[0].done(other)
		b.wants(theirs, nil)
		b.counts(TableStats{Filled: 1, Flushed: 1, Fills: 2})
	})
}

func TestCloseFlushesAndRefuses(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o.Set(span(50, 1))
		before := b.submit(span(0, 4))
		b.sleeps(before)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b.wants(before, ErrFlushed)
		b.wants(b.submit(span(0, 4)), ErrFlushed)
		b.wants(b.submit(span(50, 1)), ErrFlushed)
		b.counts(TableStats{Flushed: 3, Fills: 1})
	})
}

func TestPanicInAFillDenies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable(fillFunc(func(context.Context, ObjectID, Range) error { panic("boom") }), TableOptions{Deadline: deadline})
		b := &bench{t, table, nil, newObject("one", 10)}
		c := b.submit(span(0, 1))
		synctest.Wait()
		if err := <-c; err == nil || Errno(err) != Errno(errors.New("any")) {
			t.Errorf("answer %v", err)
		}
		b.counts(TableStats{Failed: 1, Fills: 1})
	})
}

// An object that panics costs its own reader an error and nobody else anything.
func TestPanicInSubmitLeavesTheTableUsable(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o.panic.Store(true)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			b.submit(span(0, 1))
		}()
		b.o.panic.Store(false)
		c := b.submit(span(0, 1))
		b.h.running()[0].done(b.o)
		b.wants(c, nil)
	})
}
