package fetch

import (
	"testing"
	"testing/synctest"
)

func TestFillReturnsBeforeTheStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		whole, first := g.start(0, 8*mib), g.start(8*kib, 4*kib)
		c := g.blob.next(t)
		if c.Len != 8*mib {
			t.Fatalf("request %v", c.Range)
		}
		c.give(8 * kib)
		first.sleeps()
		c.give(4 * kib)
		first.succeeds()
		whole.sleeps()
		if r := g.present[len(g.present)-1]; r.End() != 12*kib {
			t.Fatalf("last became present: %v", r)
		}
		c.give(8*mib - 12*kib)
		whole.succeeds()
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}
