package fetch

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// inParts is a blob of which each part comes from a place of its own.
type inParts struct {
	source.Blob
	ends []int64
}

func (b inParts) Part(off int64) (from, n int64) {
	for _, end := range b.ends {
		if off < end {
			return from, end - from
		}
		from = end
	}
	return from, b.Size() - from
}

func TestRequestStaysInItsPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := []int64{4 * kib, 8 * kib, 1 * mib}
		g := newRigOn(t, 64*mib, nil, func(g *rig) source.Blob { return inParts{g.blob, ends} })
		for _, c := range []struct{ fill, want ondemand.Range }{
			{ondemand.Range{Off: 12 * kib, Len: 4 * kib}, ondemand.Range{Off: 8 * kib, Len: 8 * kib}},
			{ondemand.Range{Off: 4 * kib, Len: 4 * kib}, ondemand.Range{Off: 4 * kib, Len: 4 * kib}},
			{ondemand.Range{Off: 0, Len: 1}, ondemand.Range{Off: 0, Len: 4 * kib}},
		} {
			f := g.start(c.fill.Off, c.fill.Len)
			call := g.blob.next(t)
			if call.Range != c.want {
				t.Errorf("request %v for %v, want %v", call.Range, c.fill, c.want)
			}
			call.give(call.Len)
			f.succeeds()
			g.blob.none(t)
		}
		// What is ahead of a reader ends with the part as well.
		f := g.start(896*kib, 64*kib)
		call := g.blob.next(t)
		call.give(call.Len)
		f.succeeds()
		f = g.start(960*kib, 32*kib)
		call = g.blob.next(t)
		if call.Range != (ondemand.Range{Off: 960 * kib, Len: 64 * kib}) {
			t.Errorf("with what is ahead: %v", call.Range)
		}
		call.give(call.Len)
		f.succeeds()
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}

// What a stream could not bring of another part is no reader's error but of those who
// read that part: the others ask again, and for their part only.
func TestErrorOfAnotherPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &inParts{}
		g := newRigOn(t, 64*mib, nil, func(g *rig) source.Blob { b.Blob = g.blob; return b })
		behind, within := g.start(8*kib, 4*kib), g.start(4*kib, 4*kib)
		call := g.blob.next(t)
		if call.Range != (ondemand.Range{Len: 16 * kib}) {
			t.Fatalf("request %v", call.Range)
		}
		g.blob.none(t)
		call.give(4 * kib)
		b.ends = []int64{4 * kib, 8 * kib}
		call.fail(errBroken)
		within.sleeps() // it came after the request, and asks itself
		behind.sleeps()
		calls := g.blob.all(t)
		if len(calls) != 2 {
			t.Fatalf("%d requests", len(calls))
		}
		for _, c := range calls {
			switch c.Range {
			case ondemand.Range{Off: 8 * kib, Len: 8 * kib}:
				c.give(c.Len)
			case ondemand.Range{Off: 4 * kib, Len: 4 * kib}:
				c.fail(errBroken)
			default:
				t.Errorf("request %v", c.Range)
			}
		}
		if err := within.ended(); !errors.Is(err, errBroken) {
			t.Errorf("who reads what failed got %v", err)
		}
		behind.succeeds()
		g.blob.none(t)
		g.settled(t)
	})
}
