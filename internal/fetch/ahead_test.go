package fetch

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// brief prints ranges in units of KiB, as first+length.
func brief(ranges []ondemand.Range) string {
	var out []string
	for _, r := range ranges {
		out = append(out, fmt.Sprintf("%d+%d", r.Off/kib, r.Len/kib))
	}
	return strings.Join(out, " ")
}

func TestWindows(t *testing.T) {
	for _, c := range []struct {
		name  string
		size  int64      // in KiB
		reads [][2]int64 // in KiB
		want  string     // requests in the order made, in KiB
	}{
		{
			name:  "the first read fetches itself",
			size:  65536,
			reads: [][2]int64{{0, 128}},
			want:  "0+128",
		},
		{
			name:  "the second in a row begins a window, its half the next",
			size:  65536,
			reads: [][2]int64{{0, 128}, {128, 128}, {256, 128}, {384, 128}, {512, 128}},
			want:  "0+128 128+640 768+1024",
		},
		{
			name:  "windows double up to the largest and stop at the end",
			size:  128 * 1024,
			reads: steps(0, 128*1024, 128),
			want:  "0+128 128+640 768+1024 1792+2048 3840+4096 7936+8192 16128+16384 32512+32768 65280+32768 98048+32768 130816+256",
		},
		{
			name:  "small reads begin with a small window",
			size:  65536,
			reads: steps(0, 64, 4),
			want:  "0+16 16+272",
		},
		{
			name:  "random reads fetch their own units only",
			size:  65536,
			reads: [][2]int64{{1000, 4}, {5000, 4}, {300, 4}, {9000, 4}, {2000, 4}, {60000, 4}},
			want:  "992+16 4992+16 288+16 8992+16 2000+16 60000+16",
		},
		{
			name:  "a jump back does not end the reader's window",
			size:  65536,
			reads: [][2]int64{{0, 128}, {128, 128}, {20000, 64}, {256, 128}, {384, 128}, {512, 128}},
			want:  "0+128 128+640 20000+64 768+1024",
		},
		{
			name:  "two interleaved readers have a window each",
			size:  65536,
			reads: [][2]int64{{0, 64}, {30720, 64}, {64, 64}, {30784, 64}, {128, 64}, {30848, 64}, {192, 128}, {30912, 128}},
			want:  "0+64 30720+64 64+320 30784+320 384+512 31104+512",
		},
		{
			name:  "reading backwards begins no window",
			size:  65536,
			reads: [][2]int64{{4096, 64}, {4032, 64}, {3968, 64}, {3904, 64}},
			want:  "4096+64 4032+64 3968+64 3904+64",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, c.size*kib, func(g *rig, _ *Options) { g.blob.free = true })
				for _, r := range c.reads {
					g.read(r[0]*kib, r[1]*kib)
				}
				if got := brief(g.blob.asked); got != c.want {
					t.Errorf("requests\n %s, want\n %s", got, c.want)
				}
				g.cache.check(t)
				g.Close()
			})
		})
	}
}

func steps(from, to, step int64) (reads [][2]int64) {
	for off := from; off < to; off += step {
		reads = append(reads, [2]int64{off, min(step, to-off)})
	}
	return reads
}

func TestSixteenReadersHaveAWindowEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 128*mib, func(g *rig, _ *Options) { g.blob.free = true })
		for step := range int64(32) {
			for reader := range int64(16) {
				g.read(reader*8*mib+step*128*kib, 128*kib)
			}
		}
		// Sixteen readers of 4 MiB: two reads, and a window for each
		// doubling.
		if n := len(g.blob.asked); n > 16*6 {
			t.Errorf("%d requests: %s", n, brief(g.blob.asked))
		}
		g.cache.check(t)
		g.Close()
	})
}

func TestReadAheadCollapsesWhenItsReaderIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, nil)
		c := g.ahead(0)
		// The window behind the half is large enough to be cancelled.
		g.object.Has(ondemand.Range{Off: 256 * kib, Len: 16 * kib})
		second := g.blob.next(t)
		for i := range int64(idleLimit + 2) {
			if second.isClosed() {
				t.Fatalf("collapsed after %d misses elsewhere", i)
			}
			f := g.start((50+5*i)*mib, 4*kib)
			g.blob.next(t).give(16 * kib)
			f.succeeds()
		}
		if second.Len > drain && !second.isClosed() {
			t.Error("nobody reads the window, and it is still fetched")
		}
		if w := g.Stats(testID).Windows; len(w) != 0 {
			t.Errorf("windows %v", w)
		}
		c.give(256 * kib)
		g.Close()
	})
}

func TestDemandKeepsACancelledReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, nil)
		g.ahead(0)
		g.object.Has(ondemand.Range{Off: 256 * kib, Len: 16 * kib})
		second := g.blob.next(t)
		f := g.start(second.End()-4*kib, 4*kib)
		g.object.mu.Lock()
		g.object.dropLocked([]uint64{1})
		g.object.mu.Unlock()
		second.give(second.Len)
		f.succeeds()
		g.Close()
	})
}

func TestReadAheadLeavesHalfOfTheRequestsToDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, func(_ *rig, o *Options) { o.Conns = 2 })
		g.ahead(0) // its window holds one of two
		// A second reader gets no window, only what it reads.
		for _, off := range []int64{64 * mib, 64*mib + 64*kib} {
			f := g.start(off, 64*kib)
			g.blob.next(t).give(64 * kib)
			f.succeeds()
		}
		one, two := g.start(128*mib, 4*kib), g.start(200*mib, 4*kib)
		c := g.blob.next(t)
		if c.Off != 128*mib {
			t.Fatalf("request %v", c.Range)
		}
		two.sleeps()
		c.give(16 * kib)
		one.succeeds()
		g.blob.next(t).give(16 * kib)
		two.succeeds()
		if peak := g.object.group.slots.peak; peak != 2 {
			t.Errorf("%d requests at once", peak)
		}
		g.Close()
	})
}

func TestQueuedFillsMakeNoRequestForWhatCameMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, func(_ *rig, o *Options) { o.Conns = 2 })
		a, b := g.start(0, 16*mib), g.start(100*mib, 64*kib)
		distant := g.start(10*mib, 4*kib) // far in a, and no slot free
		calls := g.blob.all(t)
		if len(calls) != 2 {
			t.Fatalf("%d requests", len(calls))
		}
		gone := g.start(200*mib, 4*kib)
		gone.cancel()
		gone.sleepsNot()
		calls[0].give(11 * mib)
		distant.succeeds()
		calls[0].give(5 * mib)
		calls[1].give(64 * kib)
		a.succeeds()
		b.succeeds()
		g.blob.none(t)
		g.Close()
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, func(_ *rig, o *Options) { o.Memory, o.Conns = 1*mib, 16 })
		var fills []*filling
		for i := range int64(10) {
			fills = append(fills, g.start(i*24*mib, 1*mib))
		}
		calls := g.blob.all(t)
		if len(calls) != 4 {
			t.Fatalf("%d requests with buffers for four", len(calls))
		}
		fills[9].cancel() // does not wait for a buffer any more
		if err := fills[9].ended(); err == nil {
			t.Error("cancelled fill succeeded")
		}
		for len(calls) > 0 {
			for _, c := range calls {
				c.give(1 * mib)
			}
			calls = g.blob.all(t)
		}
		for _, f := range fills[:9] {
			f.succeeds()
		}
		if g.memory.peak > 1*mib || g.memory.used != 0 {
			t.Errorf("%d bytes of buffers at once, %d at the end", g.memory.peak, g.memory.used)
		}
		g.Close()
	})
}

func TestFailedReadAheadIsNotGoneOnWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 256*mib, nil)
		g.ahead(0).fail(errBroken)
		if w := g.Stats(testID).Windows; len(w) != 0 {
			t.Errorf("windows %v", w)
		}
		if len(g.errs) != 1 || !errors.Is(g.errs[0], errBroken) {
			t.Errorf("reported: %v", g.errs)
		}
		g.Close()
	})
}
