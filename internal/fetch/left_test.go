package fetch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// Of two Fills that wait for the same request, which hangs, both return when both
// have been cancelled, whichever was first.
func TestCancelledFillsDoNotWaitForARequestThatHangs(t *testing.T) {
	for first := range 2 {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, 1*mib, nil)
			fills := []*filling{g.start(0, 4*kib), g.start(0, 4*kib)}
			g.blob.next(t)
			fills[first].cancel()
			fills[1-first].sleeps()
			fills[1-first].cancel()
			for n, f := range fills {
				if err := f.ended(); !errors.Is(err, context.Canceled) {
					t.Errorf("fill %d: %v", n, err)
				}
			}
			g.settled(t)
		})
	}
}

// A Fill that waits for a stream's turn returns when the stream begins, if its
// blocks have come from elsewhere meanwhile.
func TestBlocksComeWhileAStreamWaitsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(_ *rig, o *Options) { o.Conns = 2 })
		busy := []*filling{g.start(32*mib, 16*kib), g.start(48*mib, 16*kib)}
		calls := g.blob.all(t)
		long, short := g.start(0, 64*kib), g.start(0, 16*kib)
		g.blob.none(t)
		if err := g.cache.Fill(pattern(0, 16*kib), 0); err != nil {
			t.Fatal(err)
		}
		calls[0].give(16 * kib)
		busy[0].succeeds()
		c := g.blob.next(t)
		short.succeeds()
		long.sleeps()
		c.give(48 * kib)
		long.succeeds()
		calls[1].give(16 * kib)
		busy[1].succeeds()
		g.settled(t)
	})
}

// A Hydrate that waits its turn behind requests of other objects ends with its own.
func TestRemoveEndsAHydrateThatWaitsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 64*mib, func(_ *rig, o *Options) {
			o.Conns, o.Group = 2, func(ondemand.ObjectID, source.Blob) string { return "host" }
		})
		other := newKept(64 * mib)
		other.id = "other"
		if _, err := g.Add(other, &scripted{size: other.size}); err != nil {
			t.Fatal(err)
		}
		hydrate := func(ctx context.Context, id ondemand.ObjectID) *filling {
			f := &filling{t: t, cancel: func() {}, result: make(chan error, 1)}
			go func() { f.result <- g.Hydrate(ctx, id, nil) }()
			synctest.Wait()
			return f
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := hydrate(ctx, testID) // its request hangs
		second := hydrate(t.Context(), "other")
		removed := &filling{t: t, cancel: func() {}, result: make(chan error, 1)}
		go func() {
			g.Remove("other")
			removed.result <- nil
		}()
		removed.succeeds()
		if err := second.ended(); !errors.Is(err, ondemand.ErrDetached) {
			t.Errorf("hydrate: %v", err)
		}
		first.sleeps()
		cancel()
		if err := first.ended(); !errors.Is(err, context.Canceled) {
			t.Errorf("hydrate: %v", err)
		}
		g.settled(t)
	})
}
