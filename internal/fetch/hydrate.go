package fetch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

const (
	hydrateChunk   = 16 << 20 // of one request
	hydrateStreams = 4        // at once
	progressEvery  = 200 * time.Millisecond
)

// Hydrate fetches all of an object and returns when it is complete and, where
// a digest is expected, verified. Demands go first. What was fetched stays
// when it fails or ctx ends, and a later call goes on from there. progress, if
// not nil, is called from time to time and at the end, never concurrently.
func (f *Fetcher) Hydrate(ctx context.Context, id ondemand.ObjectID, progress func(present, total int64)) error {
	o, err := f.object(id)
	if err != nil {
		return fmt.Errorf("hydrate %s: %w", id.Short(), err)
	}
	return o.hydrate(ctx, progress)
}

func (o *Object) hydrate(ctx context.Context, progress func(present, total int64)) error {
	if !o.enter() {
		return ondemand.ErrDetached
	}
	defer o.leave()
	// It may wait for what requests of other objects hold.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	if progress == nil {
		return o.hydrateAll(ctx)
	}
	done := make(chan error, 1)
	go func() { done <- o.hydrateAll(ctx) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			progress(o.cache.Present(), o.Size())
		case err := <-done:
			progress(o.cache.Present(), o.Size())
			return err
		}
	}
}

func (o *Object) hydrateAll(ctx context.Context) (err error) {
	defer func() {
		if err != nil && o.ctx.Err() != nil {
			err = ondemand.ErrDetached
		}
	}()
	if !o.ordered {
		h := &hydration{object: o}
		g, gctx := errgroup.WithContext(ctx)
		for range hydrateStreams {
			g.Go(func() error { return h.work(gctx) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	for tries := 0; !o.cache.Complete(); tries++ {
		if tries == maxTries {
			return ondemand.ErrNotFilled
		}
		if err := o.finishHydrate(ctx); err != nil {
			return err
		}
	}
	return o.awaitVerified(ctx)
}

// finishHydrate brings what other streams were bringing meanwhile and may have
// failed to, and makes all durable. Data that turns out not to be durable is
// missing again.
func (o *Object) finishHydrate(ctx context.Context) error {
	for off := int64(0); ; {
		r := o.missingFrom(off, o.Size())
		if r.Empty() {
			return o.cache.Checkpoint()
		}
		if err := o.fillRange(ctx, r, false); err != nil {
			return err
		}
		off = r.End()
	}
}

// missingFrom is the first missing run of at most a chunk in [off, end).
func (o *Object) missingFrom(off, end int64) ondemand.Range {
	for off < end {
		chunk := ondemand.Range{Off: off, Len: min(hydrateChunk, end-off)}
		if !o.cache.Has(chunk) {
			if missing := o.cache.Missing(chunk); len(missing) > 0 {
				return missing[0]
			}
		}
		off = chunk.End()
	}
	return ondemand.Range{Off: end}
}

// hydration is one run of Hydrate.
type hydration struct {
	object *Object
	next   int64 // behind what was begun; guarded by Object.mu
}

// work makes one request after the other until none is left to begin.
func (h *hydration) work(ctx context.Context) error {
	for {
		more, err := h.request(ctx)
		if err != nil || !more {
			return err
		}
	}
}

// request fetches the next range that is missing and that no stream brings.
func (h *hydration) request(ctx context.Context) (more bool, err error) {
	o := h.object
	// Both before the stream exists, so that no demand waits for one that
	// waits its turn as read-ahead.
	slot, err := o.group.slots.acquire(ctx, 1, true)
	if err != nil {
		return false, err
	}
	memory, err := o.fetcher.memory.acquire(ctx, piece, true)
	if err != nil {
		o.group.slots.release(slot)
		return false, err
	}
	w := &waiter{wake: make(chan struct{}, 1), hydrate: true, patient: true, ctx: ctx}
	o.mu.Lock()
	r := h.takeLocked()
	if r.Empty() || o.closed || o.poison != nil {
		err := o.poison
		if o.closed {
			err = ondemand.ErrDetached
		}
		o.mu.Unlock()
		o.fetcher.memory.release(memory)
		o.group.slots.release(slot)
		return false, err
	}
	w.r = r
	s := o.newStreamLocked(r)
	s.demand, s.ahead, s.hydrate, s.slot, s.memory = r, always, true, slot, memory
	o.waitLocked(w, s)
	o.beginLocked(s)
	o.mu.Unlock()
	go s.work()
	return true, o.awaitHydrated(ctx, w, s)
}

func (h *hydration) takeLocked() ondemand.Range {
	o := h.object
	for {
		r := o.missingFrom(h.next, o.Size())
		if r.Empty() {
			return r
		}
		rest := []ondemand.Range{r}
		for _, s := range o.running {
			if !s.unwanted {
				rest = subtract(rest, s.rest())
			}
		}
		h.next = r.End()
		if len(rest) > 0 {
			h.next = rest[0].End()
			return rest[0]
		}
	}
}

// awaitHydrated returns when w's range is there, or s ended.
func (o *Object) awaitHydrated(ctx context.Context, w *waiter, s *stream) error {
	var err error
	for running := true; running && err == nil; {
		select {
		case <-w.wake:
			o.mu.Lock()
			running = slices.Contains(o.running, s) && !o.cache.Has(w.r)
			err = w.err
			if o.closed {
				err = ondemand.ErrDetached
			}
			o.mu.Unlock()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s.ahead = 0
	o.forgetLocked(w)
	return err
}
