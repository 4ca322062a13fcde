package spans

import (
	"math/rand/v2"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// What lies in two spans is had of each of them once, whichever comes first.
func TestSpansAreNotReadAgainForTheirEdges(t *testing.T) {
	data := text(1<<20, 14)
	for _, order := range [][]int{{1, 2, 3}, {3, 2, 1}, {2, 1, 3}, {1, 3, 2}} {
		b, x, c := open(t, data, 50_000, 1)
		for _, n := range order {
			s := x.spans[n]
			off, end := s.From.Out+1000, s.End-3000
			if err := b.Ready(t.Context(), off, end-off); err != nil {
				t.Fatal(err)
			}
			at, more := b.Align(off, end-off)
			// The caller's blocks are of 4096 bytes: of one that lies in two spans
			// it needs both parts.
			from, to := at, at+more
			if at == s.From.Out {
				from = (at + 4095) &^ 4095
			}
			if to == s.End {
				to &^= 4095
			}
			sourcetest.MustRead(t, b, data, from, to-from)
		}
		if len(c.asked) != 3 {
			t.Errorf("%v: %d requests, want 3", order, len(c.asked))
		}
		for i, n := range order {
			if s := &x.spans[n]; c.asked[i] != [2]int64{s.From.Start(), s.compressed()} {
				t.Errorf("%v: request %d is of %v, span %d is [%d,+%d)", order, i, c.asked[i], n, s.From.Start(), s.compressed())
			}
		}
		// All is there but what lies in a fourth span, without another request.
		if _, err := sourcetest.Read(t.Context(), b, x.spans[1].From.Out, 10); err != nil || len(c.asked) != 3 {
			t.Errorf("%v: what is before was read with %d requests, %v", order, len(c.asked), err)
		}
	}
}

// No more is held than may be, and what is held is right.
func TestEdgesAreBounded(t *testing.T) {
	data := text(4<<20, 15)
	b, x, _ := open(t, data, 20_000, 3)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var e edges
	for range 5000 {
		s := x.spans[rng.IntN(len(x.spans))]
		n := s.End - s.From.Out
		off := s.From.Out + rng.Int64N(n)
		end := off + 1 + rng.Int64N(s.End-off)
		e.add(data[s.From.Out:s.End], s.From.Out, off, end)
		sum := 0
		for _, all := range []map[int64][]byte{e.heads, e.tails} {
			for _, held := range all {
				sum += len(held)
			}
		}
		if sum != e.held || sum > maxEdges {
			t.Fatalf("seed %d: %d bytes are held, %d are counted", seed, sum, e.held)
		}
		from := rng.Int64N(b.Size())
		to := from + 1 + rng.Int64N(min(b.Size()-from, 30_000))
		first, last := x.spans[x.at(from)], x.spans[x.at(to-1)]
		lead := e.lead(from, to, first.End)
		if string(lead) != string(data[from:from+int64(len(lead))]) || from+int64(len(lead)) > to {
			t.Fatalf("seed %d: wrong bytes before [%d,%d)", seed, from, to)
		}
		trail := e.trail(from+int64(len(lead)), to, last.From.Out)
		if string(trail) != string(data[to-int64(len(trail)):to]) || len(lead)+len(trail) > int(to-from) {
			t.Fatalf("seed %d: wrong bytes at the end of [%d,%d)", seed, from, to)
		}
	}
}
