package ondemand

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Table holds the pending requests of all objects of one instance: readers
// that sleep until their blocks are present.
//
// Overlapping misses share fills: a request starts fills only for those parts
// of its range that no running fill covers. A fill that is much larger than what the
// request misses is not shared where the object is a FillsApart: a reader
// of a block does not wait for the download that another reader began. A request is answered as soon as
// every block of its range is present, which Present tells, or a fill that it
// needs has failed, or its deadline is over, or it is flushed. It is answered
// exactly once. A fill that nobody waits for any more is cancelled. The deadline
// runs from when the reader went to sleep, or from the last Progress of a fill
// that its request needs: data that keeps flowing is waited for. A reader that is
// gone is not.
//
// Lock order: Table.mu is the only lock and is held neither while an answer
// function nor while the Filler runs. A request cannot slip in behind Close or
// Flush: both decide under mu.
type Table struct {
	filler   Filler
	deadline time.Duration
	look     time.Duration
	made     time.Time
	ctx      context.Context
	cancel   context.CancelFunc
	fills    sync.WaitGroup
	again    func(ObjectID, Range) Range

	mu      sync.Mutex
	closed  bool
	failed  map[ObjectID][]failure
	objects map[ObjectID]*pendingObject
	stats   TableStats
	latency Histogram
}

// TableStats counts requests since the table was made.
type TableStats struct {
	// Pending are waiting now; the others have ended: Filled with data,
	// Failed by their fill, Expired at their deadline, Flushed at shutdown
	// or detach, Gone with their reader.
	Pending, Filled, Failed, Expired, Flushed, Gone uint64
	// Coalesced requests waited, at least in part, for a fill that another
	// request had started.
	Coalesced uint64
	// Fills that were started.
	Fills uint64
	// P50 and P99 of the time from a miss to its answer.
	P50, P99 time.Duration
}

// TableOptions are the choices of NewTable.
type TableOptions struct {
	// Deadline ends each request that is still pending after it without
	// progress, with EIO. It must be positive: the kernel has no deadline of
	// its own.
	Deadline time.Duration
	// LookEvery is how often the reader of a request that goes on waiting is
	// asked whether it is alive; zero means 5 s.
	LookEvery time.Duration
	// Again tells what the failure of a range speaks for, where readers ask again
	// at once for what has failed, and for what lies behind it: what was waited for
	// in vain fails them without another wait, for a second at most. Only what lies
	// near the range counts of the answer. nil: nothing. It must not block.
	Again func(id ObjectID, failed Range) Range
}

// NewTable returns a table that brings data through filler.
func NewTable(filler Filler, o TableOptions) *Table {
	if o.LookEvery == 0 {
		o.LookEvery = 5 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Table{
		filler: filler, deadline: o.Deadline, look: o.LookEvery, made: time.Now(), ctx: ctx, cancel: cancel,
		again:   o.Again,
		objects: make(map[ObjectID]*pendingObject),
	}
}

// Submit enters a read of r, which must lie inside the object and be widened
// to blocks. answer is called exactly once, possibly before Submit returns:
// with nil when every block of r is present, otherwise with the reason that
// Errno understands. It must not block.
func (t *Table) Submit(object Object, r Range, reader Reader, answer func(error)) {
	if now, err := t.enter(object, r, reader, answer); now {
		answer(err)
	}
}

// enter makes the request, or tells what is to be answered now.
func (t *Table) enter(object Object, r Range, reader Reader, answer func(error)) (now bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		t.stats.Flushed++
		return true, fmt.Errorf("read %s %v: %w", object.ID().Short(), r, ErrFlushed)
	}
	missing := object.Missing(r)
	if len(missing) == 0 {
		return true, nil
	}
	if err := t.rememberedLocked(object.ID(), r); err != nil {
		t.stats.Failed++
		return true, err
	}
	q := &request{
		object: object, r: r, answer: answer, alive: reader.Alive,
		started: time.Now().Add(-reader.Waited), apart: fillsApart(object),
	}
	for _, m := range missing {
		q.total += m.Len
	}
	po := t.objects[object.ID()]
	if po == nil {
		po = &pendingObject{waiting: make(map[int64][]*request)}
		t.objects[object.ID()] = po
	}
	t.stats.Pending++
	po.wait(q, missing[0].Off/BlockSize)
	fresh, shared := po.attach(q, missing)
	if shared {
		t.stats.Coalesced++
	}
	for _, f := range fresh {
		t.startLocked(object, po, f)
	}
	q.timer = time.AfterFunc(t.nextLook(q, t.deadline-reader.Waited), func() { t.lookAt(q) })
	return false, nil
}

// startLocked runs f on its own goroutine.
func (t *Table) startLocked(object Object, po *pendingObject, f *fill) {
	ctx, cancel := context.WithCancel(t.ctx)
	ctx = context.WithValue(ctx, progressKey{}, func() { f.progress.Store(int64(time.Since(t.made))) })
	f.cancel = cancel
	t.stats.Fills++
	t.fills.Go(func() {
		defer cancel()
		err := t.fillOnce(ctx, object.ID(), f.r)
		t.ended(object, po, f, err)
	})
}

// fillOnce calls the Filler and turns a panic into an error: it denies.
func (t *Table) fillOnce(ctx context.Context, id ObjectID, r Range) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("fill %s %v: internal error: %v", id.Short(), r, p)
		}
	}()
	if err := t.filler.Fill(ctx, id, r); err != nil {
		return fmt.Errorf("fill %s %v: %w", id.Short(), r, err)
	}
	return nil
}

// ended wakes everybody who waits for f's blocks, with data or with err.
func (t *Table) ended(object Object, po *pendingObject, f *fill, err error) {
	t.mu.Lock()
	po.drop(f)
	var woken []wake
	if missing := object.Missing(f.r); len(missing) > 0 {
		if err == nil {
			err = fmt.Errorf("fill %s %v: %w", object.ID().Short(), missing[0], ErrNotFilled)
		}
		woken = t.failLocked(po, f, missing, err)
	}
	woken = append(woken, t.presentLocked(po, f.r)...)
	if po.idle() && t.objects[object.ID()] == po {
		delete(t.objects, object.ID())
	}
	t.mu.Unlock()
	deliver(woken)
}

// wake is an answer that is to be given once mu is free.
type wake struct {
	q   *request
	err error
}

func deliver(woken []wake) {
	for _, w := range woken {
		w.q.answer(w.err)
	}
}

// failLocked ends the requests that need f and have a block in missing.
func (t *Table) failLocked(po *pendingObject, f *fill, missing []Range, err error) (woken []wake) {
	for q := range f.requests {
		if !overlapsAny(q.r, missing) {
			continue
		}
		if w, ok := t.endLocked(po, q, err); ok {
			t.stats.Failed++
			t.rememberLocked(q, err)
			woken = append(woken, w)
		}
	}
	return woken
}

// endLocked takes q out of the table; false when it had ended before.
func (t *Table) endLocked(po *pendingObject, q *request, err error) (wake, bool) {
	if !po.unwait(q) {
		return wake{}, false
	}
	t.stats.Pending--
	q.timer.Stop()
	for _, f := range q.needs {
		if delete(f.requests, q); len(f.requests) == 0 {
			// Nobody wants its data any more. Who comes now starts a
			// fill of their own rather than join one that is ending.
			f.cancel()
			po.drop(f)
		}
	}
	if po.idle() && t.objects[q.object.ID()] == po {
		delete(t.objects, q.object.ID())
	}
	return wake{q, err}, true
}

// Present tells that the blocks of r have become present: requests that waited
// for them only are answered at once, though their fill may go on.
func (t *Table) Present(id ObjectID, r Range) {
	t.mu.Lock()
	delete(t.failed, id)
	var woken []wake
	if po := t.objects[id]; po != nil {
		woken = t.presentLocked(po, r)
	}
	t.mu.Unlock()
	deliver(woken)
}

func (t *Table) presentLocked(po *pendingObject, r Range) (woken []wake) {
	first, last := r.Off/BlockSize, BlockCount(r.End())
	var touched []*request
	if int64(len(po.waiting)) < last-first {
		for block, list := range po.waiting {
			if block >= first && block < last {
				touched = append(touched, list...)
			}
		}
	} else {
		for block := first; block < last; block++ {
			touched = append(touched, po.waiting[block]...)
		}
	}
	for _, q := range touched {
		missing := q.object.Missing(q.r)
		if len(missing) > 0 {
			t.waitOnLocked(po, q, missing)
			continue
		}
		if w, ok := t.endLocked(po, q, nil); ok {
			t.stats.Filled++
			t.latency.Add(time.Since(q.started))
			woken = append(woken, w)
		}
	}
	return woken
}

// waitOnLocked lets q sleep on for the first of missing. Blocks that were present
// when q came and have been invalidated since get a fill of their own.
func (t *Table) waitOnLocked(po *pendingObject, q *request, missing []Range) {
	next := missing[0].Off / BlockSize
	if next != q.waitsOn {
		if !po.unwait(q) {
			return
		}
		po.wait(q, next)
	}
	if f, _, _ := po.find(q, missing[0].Off); f != nil {
		return
	}
	fresh, _ := po.attach(q, missing)
	for _, f := range fresh {
		t.startLocked(q.object, po, f)
	}
}

// leftLocked is how long q may still sleep.
func (t *Table) leftLocked(q *request) time.Duration {
	last := q.started.Sub(t.made)
	for _, f := range q.needs {
		if p := time.Duration(f.progress.Load()); p > 0 {
			last = max(last, p)
		}
	}
	return last + t.deadline - time.Since(t.made)
}

// nextLook is when to look at q, which has left to sleep.
func (t *Table) nextLook(q *request, left time.Duration) time.Duration {
	if q.alive != nil {
		left = min(left, t.look)
	}
	return max(left, 0)
}

// lookAt ends q at its deadline, or when its reader is gone. Progress is looked for
// only here, so that it costs no timer.
func (t *Table) lookAt(q *request) {
	gone := q.alive != nil && !q.alive()
	t.mu.Lock()
	if q.place < 0 {
		t.mu.Unlock()
		return // ended meanwhile
	}
	left := t.leftLocked(q)
	if left > 0 && !gone {
		q.timer.Reset(t.nextLook(q, left))
		t.mu.Unlock()
		return
	}
	var why error
	if gone {
		t.stats.Gone++
		why = fmt.Errorf("read %s %v: %w", q.object.ID().Short(), q.r, ErrGone)
	} else {
		t.stats.Expired++
		why = fmt.Errorf("read %s %v: no data after %v: %w", q.object.ID().Short(), q.r, t.deadline, context.DeadlineExceeded)
		t.rememberLocked(q, why)
	}
	w, _ := t.endLocked(t.objects[q.object.ID()], q, why)
	t.mu.Unlock()
	deliver([]wake{w})
}

// Flush ends every pending request of the object with err and cancels its fills.
func (t *Table) Flush(id ObjectID, err error) {
	t.mu.Lock()
	woken := t.flushLocked(id, err)
	t.mu.Unlock()
	deliver(woken)
}

func (t *Table) flushLocked(id ObjectID, err error) (woken []wake) {
	delete(t.failed, id)
	po := t.objects[id]
	if po == nil {
		return nil
	}
	var all []*request
	for _, list := range po.waiting {
		all = append(all, list...)
	}
	for _, q := range all {
		if w, ok := t.endLocked(po, q, err); ok {
			t.stats.Flushed++
			woken = append(woken, w)
		}
	}
	return woken
}

// Close refuses further requests, ends all pending ones with ErrFlushed and
// returns when every fill has ended.
func (t *Table) Close() error {
	t.mu.Lock()
	t.closed = true
	var woken []wake
	for id := range t.objects {
		woken = append(woken, t.flushLocked(id, ErrFlushed)...)
	}
	t.mu.Unlock()
	deliver(woken)
	t.cancel()
	t.fills.Wait()
	return nil
}

// Stats returns the counters of this moment.
func (t *Table) Stats() TableStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.P50, s.P99 = t.latency.Quantile(0.50), t.latency.Quantile(0.99)
	return s
}
