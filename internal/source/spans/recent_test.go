package spans

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// Who reads a little of a span and then more of it, and of those beside it, has each
// span fetched once.
func TestSpanIsHeldForAWhile(t *testing.T) {
	data := text(1<<20, 16)
	b, x, c := open(t, data, 50_000, 1)
	at := func(n int) int64 { return x.spans[n].From.Out + 20_000 }
	sourcetest.MustRead(t, b, data, at(3), 512)
	sourcetest.MustRead(t, b, data, at(3), 10_000)
	if len(c.asked) != 1 {
		t.Errorf("%d requests for one span", len(c.asked))
	}
	sourcetest.MustRead(t, b, data, at(2), at(5)-at(2)) // 3 lies in the middle
	want := [2]int64{x.spans[2].From.Start(), x.spans[5].InEnd - x.spans[2].From.Start()}
	if len(c.asked) != 2 || c.asked[1] != want {
		t.Errorf("asked for %v, want %v", c.asked[1:], want)
	}
	sourcetest.MustRead(t, b, data, at(4), at(7)-at(4)) // 4 and 5 at the beginning
	sourcetest.MustRead(t, b, data, at(1), at(3)-at(1)) // 2 and 3 at the end
	for i, span := range [][2]int{{6, 7}, {1, 1}} {
		want := [2]int64{x.spans[span[0]].From.Start(), x.spans[span[1]].InEnd - x.spans[span[0]].From.Start()}
		if len(c.asked) != 4 || c.asked[2+i] != want {
			t.Errorf("asked for %v, want %v", c.asked[2:], want)
		}
	}
}

// What is held is bounded, belongs to its blob, and goes with it.
func TestHeldSpansAreBounded(t *testing.T) {
	gate := NewGate()
	one, two := text(maxRecent, 17), text(2<<20, 18)
	var blobs []*Blob
	for _, data := range [][]byte{one, two} {
		file := pack(t, data, 1)
		b := New(mem.New(file), indexOf(t, file, 1<<20), gate)
		sourcetest.MustRead(t, b, data, 0, b.Size())
		sourcetest.MustRead(t, b, data, b.Size()-5000, 100)
		blobs = append(blobs, b)
		sum := 0
		for _, s := range gate.recent.spans {
			sum += len(s.data)
		}
		if sum != gate.recent.held || sum > maxRecent || sum < maxRecent/2 {
			t.Errorf("%d bytes are held, %d counted", sum, gate.recent.held)
		}
	}
	for _, b := range blobs {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if gate.recent.held != 0 || len(gate.recent.spans) != 0 {
		t.Errorf("%d bytes are held of what is closed", gate.recent.held)
	}
}
