package ondemand

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// large is an object of which a whole-file request is more than a small one
// waits for.
func large(apart bool) *object {
	o := newObject("one", 64<<20/BlockSize)
	o.apart = apart
	return o
}

// One request for a whole file does not make every small read wait for all of it.
func TestSmallRequestDoesNotWaitForALargeFill(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o = large(true)
		all := b.submit(Range{Len: b.o.Size()})
		small, same, broken := b.submit(span(9000, 2)), b.submit(span(9000, 2)), b.submit(span(50, 1))
		fills := b.h.running()
		if len(fills) != 3 || fills[1].r != span(50, 1) || fills[2].r != span(9000, 2) {
			b.Fatalf("fills %v", fills)
		}
		errBroken := errors.New("broken")
		fills[1].end <- errBroken
		b.wants(broken, errBroken)
		b.sleeps(all, small, same)
		fills[2].done(b.o)
		b.wants(small, nil)
		b.wants(same, nil)
		late := b.submit(span(9001, 2)) // the first of them is present
		b.sleeps(all, late)
		fills[0].end <- errBroken
		b.wants(all, errBroken)
		b.sleeps(late)
		again := b.h.running()
		if len(again) != 1 || again[0].r != span(9002, 1) {
			b.Fatalf("fills %v", again)
		}
		again[0].done(b.o)
		b.wants(late, nil)
		b.counts(TableStats{Filled: 3, Failed: 2, Coalesced: 1, Fills: 4})
	})
}

// Data that flows for somebody else's download is no progress of a small request.
func TestProgressOfALargeFillIsNotThatOfASmallRequest(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o = large(true)
		all, small := b.submit(Range{Len: b.o.Size()}), b.submit(span(9000, 1))
		whole := b.h.running()[0]
		<-time.After(deadline - 1)
		Progress(whole.ctx)
		<-time.After(1)
		b.wants(small, context.DeadlineExceeded)
		b.sleeps(all)
	})
}

// What is not much smaller shares the fill, and so does everything where each
// range is to be asked for once.
func TestFillsThatAreShared(t *testing.T) {
	for _, c := range []struct {
		name        string
		apart       bool
		first, next Range
		fills       int
	}{
		{"small in large", true, span(0, 16384), span(9000, 1), 2},
		{"an eighth", true, span(0, 16384), span(9000, 2048), 2},
		{"more than an eighth", true, span(0, 16384), span(9000, 2049), 1},
		{"of 8 MiB", true, span(0, 2048), span(1000, 1), 1},
		{"of more than 8 MiB", true, span(0, 2049), span(1000, 1), 2},
		{"each range once", false, span(0, 16384), span(9000, 1), 1},
		{"over the end", true, span(0, 9000), span(8999, 2), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(b *bench) {
				b.o = large(c.apart)
				first, next := b.submit(c.first), b.submit(c.next)
				if n := len(b.h.running()); n != c.fills {
					t.Errorf("%d fills, want %d", n, c.fills)
				}
				b.sleeps(first, next)
			})
		})
	}
}

// A request for a whole file that comes when most of it is there in pieces, all of
// them in one running fill, makes no fill for each hole that is left.
func TestManyHolesInALargeFillAreOneRequest(t *testing.T) {
	onBench(t, func(b *bench) {
		b.o = large(true)
		first := b.submit(Range{Len: b.o.Size()})
		for block := int64(0); block < 16384; block += 2 {
			b.o.Set(span(block, 1))
		}
		second := b.submit(Range{Len: b.o.Size()})
		if n := len(b.h.running()); n != 1 {
			t.Errorf("%d fills", n)
		}
		b.sleeps(first, second)
	})
}

// sound fails unless the fills of each level are disjoint and in order, and every
// pending request has running fills for all that it misses; where blocks were cleared
// meanwhile, at least for what it waits for first.
func (b *bench) sound(cleared bool) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, po := range b.objects {
		running := make(map[*fill]bool)
		for l, fills := range po.levels {
			for i, f := range fills {
				running[f] = true
				if f.level != l || i > 0 && fills[i-1].r.End() > f.r.Off || f.r.Empty() || len(f.requests) == 0 {
					b.Fatalf("level %d: %v, and before it %v", l, f.r, fills[max(i-1, 0)].r)
				}
			}
		}
		if len(po.levels) > 5 {
			b.Errorf("%d levels", len(po.levels))
		}
		for block, list := range po.waiting {
			for _, q := range list {
				missing := []Range{{Off: block * BlockSize, Len: BlockSize}}
				if !cleared {
					missing = q.object.Missing(q.r)
				}
				if !covers(running, missing) {
					b.Fatalf("nothing brings all of %v for %v", missing, q.r)
				}
			}
		}
	}
}

// covers tells whether fills bring all of missing.
func covers(fills map[*fill]bool, missing []Range) bool {
	for _, m := range missing {
		for off := m.Off; off < m.End(); {
			end := off
			for f := range fills {
				if f.r.Off <= off {
					end = max(end, f.r.End())
				}
			}
			if end == off {
				return false
			}
			off = end
		}
	}
	return true
}

// TestFillsOfManySizes lets requests of all sizes come and fills of all levels
// end, in any order and way.
func TestFillsOfManySizes(t *testing.T) {
	for i := range 10 {
		seed, cleared := rand.Uint64(), i%2 == 0
		t.Run(fmt.Sprintf("seed=%d,cleared=%v", seed, cleared), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			onBench(t, func(b *bench) {
				blocks := int64(1) << 18 // 1 GiB
				b.o = newObject("one", blocks)
				b.o.apart = true
				var asleep []chan error
				for range 400 {
					switch running := b.h.running(); {
					case len(running) < 3 || rng.IntN(2) == 0:
						n := int64(1) << rng.IntN(18)
						n += rng.Int64N(n)
						asleep = append(asleep, b.submit(span(rng.Int64N(blocks-n+1), n)))
					case rng.IntN(3) == 0:
						b.end(rng, running[rng.IntN(len(running))], cleared)
					default: // a part, told while the fill goes on
						f := running[rng.IntN(len(running))]
						part := Range{Off: f.r.Off, Len: f.r.Len / 2}
						b.o.Set(part)
						b.Present("one", part)
					}
					b.h.running() // waits
					b.sound(cleared)
				}
				b.Flush("one", ErrDetached)
				b.h.running()
				for i, c := range asleep {
					if len(c) != 1 {
						t.Errorf("request %d has %d answers", i, len(c))
					}
				}
				if len(b.objects) != 0 {
					t.Error("an object is left in the table")
				}
			})
		})
	}
}

// end ends f with its data, with a part of it, or with none.
func (b *bench) end(rng *rand.Rand, f *heldFill, clear bool) {
	switch rng.IntN(4) {
	case 0:
		f.end <- errors.New("broken")
	case 1:
		b.o.Set(Range{Off: f.r.Off, Len: f.r.Len / 2})
		f.end <- errors.New("broken afterwards")
	case 2: // something that was there is missing again
		if clear {
			b.o.Clear(span(rng.Int64N(1<<18), 1<<rng.IntN(12)))
		}
		f.done(b.o)
	default:
		f.done(b.o)
	}
}
