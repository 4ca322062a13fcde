package fetch

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

var errBroken = errors.New("broken")

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

func TestPlan(t *testing.T) {
	const size = 1*mib + 100
	for _, c := range []struct {
		name    string
		present []ondemand.Range
		fill    ondemand.Range
		want    []ondemand.Range
	}{
		{"one block is fetched as a unit", nil, ondemand.Range{Off: 20 * kib, Len: 4 * kib}, []ondemand.Range{{Off: 16 * kib, Len: 16 * kib}}},
		{"the last, short unit", nil, ondemand.Range{Off: 1 * mib, Len: 100}, []ondemand.Range{{Off: 1 * mib, Len: 100}}},
		{"behind the end", nil, ondemand.Range{Off: 2 * mib, Len: 100}, nil},
		{"all present", []ondemand.Range{{Off: 0, Len: size}}, ondemand.Range{Off: 5, Len: 100}, nil},
		{
			"present neighbours in the unit are not fetched",
			[]ondemand.Range{{Off: 16 * kib, Len: 4 * kib}, {Off: 28 * kib, Len: 4 * kib}},
			ondemand.Range{Off: 20 * kib, Len: 4 * kib},
			[]ondemand.Range{{Off: 20 * kib, Len: 8 * kib}},
		},
		{
			"across a small gap",
			[]ondemand.Range{{Off: 64 * kib, Len: 64 * kib}},
			ondemand.Range{Off: 0, Len: 256 * kib},
			[]ondemand.Range{{Off: 0, Len: 256 * kib}},
		},
		{
			"around a large gap",
			[]ondemand.Range{{Off: 64 * kib, Len: 68 * kib}},
			ondemand.Range{Off: 0, Len: 256 * kib},
			[]ondemand.Range{{Off: 0, Len: 64 * kib}, {Off: 132 * kib, Len: 124 * kib}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, size, func(g *rig, _ *Options) { g.blob.free = true })
				for _, r := range c.present {
					if err := g.cache.Fill(pattern(r.Off, r.Len), r.Off); err != nil {
						t.Fatal(err)
					}
				}
				g.start(c.fill.Off, c.fill.Len).succeeds()
				slices.SortFunc(g.blob.asked, func(a, b ondemand.Range) int { return int(a.Off - b.Off) })
				if !slices.Equal(g.blob.asked, c.want) {
					t.Errorf("requests %v, want %v", g.blob.asked, c.want)
				}
				if !g.cache.Has(c.fill) {
					t.Error("not present")
				}
				g.cache.check(t)
				g.Close()
			})
		})
	}
}

// ahead makes a reader of two reads, and returns the request that the second
// made: the second read itself and a window behind it.
func (g *rig) ahead(off int64) *call {
	g.t.Helper()
	f := g.start(off, 64*kib)
	g.blob.next(g.t).give(64 * kib)
	f.succeeds()
	f = g.start(off+64*kib, 64*kib)
	c := g.blob.next(g.t)
	if c.Off != off+64*kib || c.Len != 64*kib+256*kib {
		g.t.Fatalf("request of the second read: %v", c.Range)
	}
	c.give(64 * kib)
	f.succeeds()
	return c
}

func TestFillTakesOverWhenReadAheadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		c := g.ahead(0)
		f := g.start(192*kib, 16*kib)
		g.blob.none(t)
		c.fail(errBroken)
		f.sleeps()
		own := g.blob.next(t)
		if own.Range != (ondemand.Range{Off: 192 * kib, Len: 16 * kib}) {
			t.Fatalf("own request %v", own.Range)
		}
		own.give(16 * kib)
		f.succeeds()
		if len(g.errs) != 1 || !errors.Is(g.errs[0], errBroken) {
			t.Errorf("reported: %v", g.errs)
		}
		// A failure of its own attempt is the Fill's.
		f = g.start(256*kib, 16*kib)
		g.blob.next(t).fail(errBroken)
		if err := f.ended(); !errors.Is(err, errBroken) {
			t.Errorf("fill: %v", err)
		}
		g.Close()
	})
}

func TestFailingStreamKeepsWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		f := g.start(0, 1*mib)
		c := g.blob.next(t)
		c.give(9 * kib)
		c.fail(errBroken)
		if err := f.ended(); !errors.Is(err, errBroken) || ondemand.Errno(err) != syscall.EIO {
			t.Errorf("fill: %v", err)
		}
		if n := g.cache.Bytes(); n != 8*kib {
			t.Errorf("%d bytes present", n)
		}
		g.cache.check(t)
		g.Close()
	})
}

func TestFillsThatWaitTogetherMakeTwoAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		first, second, third := g.start(0, 64*kib), g.start(0, 64*kib), g.start(0, 64*kib)
		g.blob.next(t).fail(errBroken)
		if err := first.ended(); !errors.Is(err, errBroken) {
			t.Errorf("first: %v", err)
		}
		second.sleeps()
		third.sleeps()
		g.blob.next(t).fail(errBroken)
		for _, f := range []*filling{second, third} {
			if err := f.ended(); !errors.Is(err, errBroken) {
				t.Errorf("fill: %v", err)
			}
		}
		g.blob.none(t)
		g.Close()
	})
}

func TestStreamOutlivesTheFillThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		first, second := g.start(0, 8*mib), g.start(1*mib, 64*kib)
		c := g.blob.next(t)
		first.cancel()
		first.sleeps() // the stream runs on its goroutine
		if c.isClosed() {
			t.Fatal("the stream ended although the second fill wants it")
		}
		c.give(1*mib + 64*kib)
		second.succeeds()
		if err := first.ended(); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled fill: %v", err)
		}
		if synctest.Wait(); !c.isClosed() {
			t.Error("the stream goes on although nobody wants it")
		}
		g.blob.none(t)
		g.Close()
	})
}

func TestCancelledFillEndsItsStreamAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		f := g.start(0, 64*kib)
		c := g.blob.next(t)
		c.give(4 * kib)
		f.cancel()
		f.sleepsNot()
		if !c.isClosed() {
			t.Error("the stream goes on although nobody wants it")
		}
		g.Close()
	})
}

func (f *filling) sleepsNot() {
	f.t.Helper()
	if err := f.ended(); !errors.Is(err, context.Canceled) {
		f.t.Fatalf("fill: %v", err)
	}
}

func TestDemandFarInAStreamMakesItsOwnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		whole := g.start(0, 16*mib)
		c := g.blob.next(t)
		near := g.start(far, 4*kib)
		g.blob.none(t)
		distant := g.start(far+1*mib, 4*kib)
		own := g.blob.next(t)
		own.give(16 * kib)
		distant.succeeds()
		c.give(16 * mib)
		near.succeeds()
		whole.succeeds()
		g.cache.check(t) // also that the stream did not write what was present
		g.Close()
	})
}

func TestErrorsOfTheSource(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{source.ErrDenied, syscall.EPERM},
		{source.ErrBusy, syscall.EAGAIN},
		{source.ErrUnreachable, syscall.EIO},
		{source.ErrChanged, syscall.EIO},
		{syscall.ENOSPC, syscall.ENOSPC},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newRig(t, 64*mib, nil)
				f := g.start(0, 64*kib)
				call := g.blob.next(t)
				call.give(8 * kib)
				call.fail(c.err)
				err := f.ended()
				if !errors.Is(err, c.err) || ondemand.Errno(err) != c.want {
					t.Errorf("%v, errno %v", err, ondemand.Errno(err))
				}
				// What is present stays readable, whatever happened.
				g.start(0, 8*kib).succeeds()
				f = g.start(8*kib, 4*kib)
				if changed := errors.Is(c.err, source.ErrChanged); !changed {
					g.blob.next(t).give(16 * kib)
					f.succeeds()
				} else if err := f.ended(); !errors.Is(err, source.ErrChanged) || g.Stats(testID).Err == nil {
					t.Errorf("after the source changed: %v", err)
				} else {
					g.blob.none(t)
				}
				g.Close()
			})
		})
	}
}

func TestCacheErrorReachesTheFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(g *rig, _ *Options) {
			g.blob.free = true
			g.cache.onFill = func(ondemand.Range) error { return syscall.ENOSPC }
		})
		err := g.start(0, 64*kib).ended()
		if ondemand.Errno(err) != syscall.ENOSPC {
			t.Errorf("fill: %v", err)
		}
		g.Close()
	})
}

func TestPanicIsAnErrorOfTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(g *rig, o *Options) {
			g.blob.free = true
			g.cache.onFill = func(ondemand.Range) error { panic("cache is mad") }
			o.OnError = func(ondemand.ObjectID, error) { panic("so is its reporter") }
		})
		if err := g.start(0, 64*kib).ended(); ondemand.Errno(err) != syscall.EIO {
			t.Errorf("fill: %v", err)
		}
		g.cache.onFill = nil
		g.start(0, 64*kib).succeeds()
		g.Close()
	})
}

func TestBlocksThatDoNotStayPresentEndTheFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(g *rig, _ *Options) { g.blob.free, g.cache.forgetful = true, true })
		if err := g.start(0, 64*kib).ended(); !errors.Is(err, ondemand.ErrNotFilled) {
			t.Errorf("fill: %v", err)
		}
		if n := len(g.blob.asked); n != maxTries {
			t.Errorf("%d requests", n)
		}
		g.Close()
	})
}

func TestRemoveEndsFills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(_ *rig, o *Options) { o.Conns = 2 })
		var fills []*filling
		for i := range int64(5) {
			fills = append(fills, g.start(i*8*mib, 64*kib))
		}
		c := g.blob.all(t)[0]
		g.Remove(testID)
		for _, f := range fills {
			if err := f.ended(); !errors.Is(err, ondemand.ErrDetached) {
				t.Errorf("fill: %v", err)
			}
		}
		if !c.isClosed() {
			t.Error("a body is open after Remove")
		}
		if err := g.start(0, 4*kib).ended(); !errors.Is(err, ondemand.ErrDetached) {
			t.Errorf("fill of a removed object: %v", err)
		}
		if _, err := g.Add(g.cache, g.blob); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Add(g.cache, g.blob); !errors.Is(err, ErrExists) {
			t.Errorf("added twice: %v", err)
		}
		f := g.start(0, 4*kib)
		g.blob.next(t).give(16 * kib)
		f.succeeds()
		g.Close()
	})
}

func TestOrderedSourceIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8*mib, func(g *rig, _ *Options) { g.blob.ordered = true })
		last, first := g.start(7*mib, 4*kib), g.start(0, 4*kib)
		c := g.blob.next(t)
		if c.Len != 8*mib {
			t.Fatalf("request %v", c.Range)
		}
		c.give(1 * mib)
		first.succeeds()
		last.sleeps()
		last.cancel()
		last.sleepsNot()
		if c.isClosed() {
			t.Fatal("the only stream was cancelled")
		}
		c.fail(errBroken)
		last = g.start(7*mib, 4*kib)
		c = g.blob.next(t)
		c.give(7 * mib)
		last.sleeps()
		c.fail(errBroken)
		if err := last.ended(); !errors.Is(err, errBroken) {
			t.Errorf("fill: %v", err)
		}
		last = g.start(7*mib, 4*kib)
		g.blob.next(t).give(8 * mib)
		last.succeeds()
		if !g.object.Complete() || !g.Stats(testID).Sequential {
			t.Errorf("complete %v, %+v", g.object.Complete(), g.Stats(testID))
		}
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}
