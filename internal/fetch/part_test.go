package fetch

import (
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
