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
	return f.hydrate(ctx, id, false, progress)
}

// HydrateOnward is Hydrate by one request after the other, each for all that is missing
// in a row: of a blob that is read to no purpose before a request's first byte and behind
// its last one, as a layer is that can only be decoded by spans.
func (f *Fetcher) HydrateOnward(ctx context.Context, id ondemand.ObjectID, progress func(present, total int64)) error {
	return f.hydrate(ctx, id, true, progress)
}

func (f *Fetcher) hydrate(ctx context.Context, id ondemand.ObjectID, onward bool, progress func(present, total int64)) error {
	o, err := f.object(id)
	if err != nil {
		return fmt.Errorf("hydrate %s: %w", id.Short(), err)
	}
	h := &hydration{object: o, onward: onward}
	return h.run(ctx, progress)
}

func (h *hydration) run(ctx context.Context, progress func(present, total int64)) error {
	o := h.object
	if !o.enter() {
		return ondemand.ErrDetached
	}
	defer o.leave()
	// It may wait for what requests of other objects hold.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	if progress == nil {
		return h.all(ctx)
	}
	done := make(chan error, 1)
	go func() { done <- h.all(ctx) }()
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

func (h *hydration) all(ctx context.Context) (err error) {
	o := h.object
	defer func() {
		if err != nil && o.ctx.Err() != nil {
			err = ondemand.ErrDetached
		}
	}()
	if !o.ordered {
		streams := hydrateStreams
		if h.onward {
			streams = 1
		}
		g, gctx := errgroup.WithContext(ctx)
		for range streams {
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
	onward bool  // by one request at a time, as large as may be
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
		r := h.missing()
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

// missing is what is missing behind what was begun: a chunk of it, or all in a row.
func (h *hydration) missing() ondemand.Range {
	o := h.object
	r := o.missingFrom(h.next, o.Size())
	for h.onward && !r.Empty() && r.End() < o.Size() {
		more := o.cache.Missing(ondemand.Range{Off: r.End(), Len: min(hydrateChunk, o.Size()-r.End())})
		if len(more) == 0 || more[0].Off != r.End() {
			break
		}
		r.Len += more[0].Len
	}
	return r
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
