package fetch

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// hydrate begins to hydrate the rig's object.
func (g *rig) hydrate(progress func(present, total int64)) *filling {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	f := &filling{t: g.t, cancel: cancel, result: make(chan error, 1)}
	go func() { f.result <- g.Hydrate(ctx, testID, progress) }()
	synctest.Wait()
	return f
}

func TestHydrateFetchesWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 80*mib+5, nil)
		if err := g.cache.Fill(pattern(20*mib, 1*mib), 20*mib); err != nil {
			t.Fatal(err)
		}
		demand := g.start(70*mib, 4*kib)
		running := g.blob.next(t)
		var present, total int64
		h := g.hydrate(func(p, n int64) { present, total = p, n })
		calls := g.blob.all(t)
		if len(calls) != hydrateStreams {
			t.Fatalf("%d requests at once", len(calls))
		}
		// A demand goes on beside it, and joins what is near.
		first := g.start(0, 4*kib)
		other := g.start(75*mib, 4*kib)
		own := g.blob.next(t)
		own.give(16 * kib)
		other.succeeds()
		for len(calls) > 0 {
			for _, c := range calls {
				c.give(hydrateChunk)
			}
			calls = g.blob.all(t)
		}
		first.succeeds()
		h.sleeps() // for the stream of the first demand
		running.give(16 * kib)
		demand.succeeds()
		h.succeeds()
		if present != total || total != 80*mib+5 {
			t.Errorf("progress says %d of %d", present, total)
		}
		if s := g.Stats(testID); s.Hydrated+s.Demand+1*mib != total || s.Fetched != s.Hydrated+s.Demand {
			t.Errorf("%+v", s)
		}
		g.cache.check(t)
		g.Close()
	})
}

// Onward, all that is missing in a row is one request, and there is one at a time.
func TestHydrateOnwardIsOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 80*mib+5, nil)
		for _, off := range []int64{20 * mib, 70 * mib} {
			if err := g.cache.Fill(pattern(off, 1*mib), off); err != nil {
				t.Fatal(err)
			}
		}
		h := &filling{t: t, cancel: func() {}, result: make(chan error, 1)}
		go func() { h.result <- g.HydrateOnward(t.Context(), testID, nil) }()
		for _, want := range []ondemand.Range{{Len: 20 * mib}, {Off: 21 * mib, Len: 49 * mib}, {Off: 71 * mib, Len: 9*mib + 5}} {
			call := g.blob.next(t)
			if call.Range != want {
				t.Errorf("request %v, want %v", call.Range, want)
			}
			g.blob.none(t)
			h.sleeps()
			call.give(call.Len)
		}
		h.succeeds()
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}

func TestHydrateGoesOnWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		h := g.hydrate(nil)
		calls := g.blob.all(t)
		calls[0].give(4 * mib)
		calls[1].give(6 * mib)
		calls[1].fail(errBroken)
		if err := h.ended(); !errors.Is(err, errBroken) {
			t.Fatalf("hydrate: %v", err)
		}
		for _, c := range calls {
			if !c.isClosed() {
				t.Error("a request goes on after Hydrate returned")
			}
		}
		h = g.hydrate(nil)
		h.cancel()
		h.sleepsNot()
		g.blob.all(t)
		if n := g.cache.Bytes(); n != 10*mib {
			t.Fatalf("%d bytes present", n)
		}
		g.blob.free = true
		before := g.Stats(testID).Fetched
		g.hydrate(nil).succeeds()
		if n := g.Stats(testID).Fetched - before; n != 54*mib {
			t.Errorf("fetched %d bytes for the rest", n)
		}
		g.cache.check(t)
		g.Close()
	})
}

func TestHydrateFillsWhatAnotherStreamFailedToBring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 8*mib, nil)
		demand := g.start(0, 8*mib)
		broken := g.blob.next(t)
		h := g.hydrate(nil)
		g.blob.none(t)
		broken.fail(errBroken)
		if err := demand.ended(); !errors.Is(err, errBroken) {
			t.Errorf("fill: %v", err)
		}
		g.blob.next(t).give(8 * mib)
		h.succeeds()
		g.cache.check(t)
		g.Close()
	})
}

func TestRemoveEndsHydrate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ordered := range []bool{false, true} {
			g := newRig(t, 64*mib, func(g *rig, _ *Options) { g.blob.ordered = ordered })
			h := g.hydrate(func(int64, int64) {})
			g.Remove(testID)
			if err := h.ended(); !errors.Is(err, ondemand.ErrDetached) {
				t.Errorf("hydrate: %v", err)
			}
			g.Close()
		}
	})
}

func TestHydrateOfAnOrderedSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 40*mib, func(g *rig, _ *Options) { g.blob.ordered = true })
		h := g.hydrate(nil)
		g.blob.next(t).give(40 * mib)
		h.succeeds()
		g.cache.check(t)
		g.Close()
	})
}

func TestHydrateOfAChangedSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, nil)
		h := g.hydrate(nil)
		for _, c := range g.blob.all(t) {
			c.fail(source.ErrChanged)
		}
		if err := h.ended(); !errors.Is(err, source.ErrChanged) {
			t.Errorf("hydrate: %v", err)
		}
		if err := g.hydrate(nil).ended(); !errors.Is(err, source.ErrChanged) {
			t.Errorf("hydrate: %v", err)
		}
		g.Close()
	})
}

func TestDigest(t *testing.T) {
	const size = 3*mib + 7
	t.Run("right", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, size, func(g *rig, _ *Options) { g.cache.sum, g.blob.free = patternSum(size), true })
			g.hydrate(nil).succeeds()
			if !g.cache.Verified() || !g.object.Complete() {
				t.Error("not verified")
			}
			if r := g.present[len(g.present)-1]; r.Len != size {
				t.Errorf("nobody was told that the object is verified: %v", r)
			}
			g.Close()
		})
	})
	t.Run("right, filled by reads", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, size, func(g *rig, _ *Options) { g.cache.sum, g.blob.free = patternSum(size), true })
			g.start(0, size).succeeds()
			if !g.cache.Verified() {
				t.Error("not verified")
			}
			g.Close()
		})
	})
	t.Run("right, complete when added", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, size, func(g *rig, _ *Options) {
				g.cache.sum = patternSum(size)
				if err := g.cache.Fill(pattern(0, size), 0); err != nil {
					t.Fatal(err)
				}
			})
			if synctest.Wait(); !g.cache.Verified() {
				t.Error("not verified")
			}
			g.Close()
		})
	})
	t.Run("wrong", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, size, func(g *rig, _ *Options) { g.cache.sum, g.blob.free = patternSum(size-1), true })
			if err := g.hydrate(nil).ended(); !errors.Is(err, ErrDigest) {
				t.Errorf("hydrate: %v", err)
			}
			if g.object.Complete() || g.object.Has(ondemand.Range{Len: 1}) || g.cache.Bytes() != 0 {
				t.Error("wrong data counts as present")
			}
			err := g.start(0, 4*kib).ended()
			if !errors.Is(err, ErrDigest) || ondemand.Errno(err) != syscall.EIO {
				t.Errorf("fill: %v", err)
			}
			if !errors.Is(g.Stats(testID).Err, ErrDigest) || len(g.errs) != 1 {
				t.Errorf("%+v, reported %v", g.Stats(testID), g.errs)
			}
			if err := g.hydrate(nil).ended(); !errors.Is(err, ErrDigest) {
				t.Errorf("hydrate again: %v", err)
			}
			// Added anew with the right digest, it is as good as any.
			g.Remove(testID)
			g.cache.sum = patternSum(size)
			if _, err := g.Add(g.cache, g.blob); err != nil {
				t.Fatal(err)
			}
			g.hydrate(nil).succeeds()
			g.cache.check(t)
			g.Close()
		})
	})
	t.Run("cannot be read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, size, func(g *rig, _ *Options) { g.cache.sum, g.blob.free = patternSum(size), true })
			g.cache.unreadable = errBroken
			if err := g.hydrate(nil).ended(); !errors.Is(err, errBroken) {
				t.Errorf("hydrate: %v", err)
			}
			if g.cache.unreadable = nil; g.cache.Bytes() != size {
				t.Error("data was given up although nothing is known against it")
			}
			g.hydrate(nil).succeeds()
			if !g.object.Complete() {
				t.Error("not verified")
			}
			g.Close()
		})
	})
}
