package fetch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// always stands in stream.ahead for a stream that is wanted by itself: the one
// of an ordered blob, and those of Hydrate while it runs.
const always = math.MaxUint64

// stream is one request to the source. All fields are guarded by Object.mu;
// pos and end are read without it by the stream's own goroutine, which alone
// writes them once the stream has begun.
type stream struct {
	object   *Object
	seq      uint64         // when it was begun, on Object.clock
	from     int64          // where its body begins
	pos, end int64          // what is still to come; pos moves with the body
	demand   ondemand.Range // what a Fill asked for; empty in pure read-ahead
	ahead    uint64         // serial of the head that wants it; 0: none; or always
	hydrate  bool
	queued   bool
	unwanted bool // it ends soon without its blocks; nobody may join
	ended    bool
	// abandoned: it runs on the goroutine of a Fill that is to return.
	abandoned bool
	waiters   []*waiter
	slot      *ticket
	memory    *ticket
	told      time.Time // when goOn last looked; the stream's own
	untold    int       // bytes that came since goOn last told; the stream's own
	idle      time.Time // of an ordered blob: since when no reader waits; zero: one does
	ctx       context.Context
	cancel    context.CancelFunc
}

func (s *stream) rest() ondemand.Range { return ondemand.Range{Off: s.pos, Len: s.end - s.pos} }

func (o *Object) newStreamLocked(r ondemand.Range) *stream {
	o.clock++
	o.live++
	return &stream{object: o, seq: o.clock, from: r.Off, pos: r.Off, end: r.End()}
}

// bufferSize is the size of the buffer that a stream of n bytes has.
func bufferSize(n int64) int64 {
	if n <= smallPiece {
		return smallPiece
	}
	return piece
}

// beginAheadLocked begins s if read-ahead is admitted now.
func (o *Object) beginAheadLocked(s *stream) bool {
	s.slot = o.group.slots.tryAhead(1)
	if s.slot == nil {
		return false
	}
	s.memory = o.fetcher.memory.tryAhead(bufferSize(s.end - s.pos))
	if s.memory == nil {
		o.group.slots.release(s.slot)
		return false
	}
	o.beginLocked(s)
	go s.work()
	return true
}

func (o *Object) beginLocked(s *stream) {
	s.ctx, s.cancel = context.WithCancel(o.ctx)
	o.running = append(o.running, s)
}

// run is the goroutine of a stream that was queued and is admitted.
func (s *stream) run() {
	if s.begin() {
		s.work()
	}
}

// begin begins s with what of its range is missing by now; false when that is
// nothing, or nobody wants it any more: s has ended then.
func (s *stream) begin() bool {
	o := s.object
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.queued {
		o.unqueueLocked(s)
	}
	missing := o.cache.Missing(s.rest())
	if s.unwanted || o.closed || len(missing) == 0 {
		o.endLocked(s)
		return false
	}
	if !o.ordered {
		s.pos, s.end = missing[0].Off, missing[len(missing)-1].End()
		s.from = s.pos
	}
	o.beginLocked(s)
	o.reckonLocked(s)
	s.wakePresentLocked() // what was missing when they came may be there by now
	s.wakeFarLocked()
	return true
}

// wakeFarLocked wakes who has joined s while it was queued and wants what it will
// bring late: now that it runs, they may make a request of their own.
func (s *stream) wakeFarLocked() {
	o := s.object
	if o.ordered || s.end-s.pos <= far {
		return
	}
	for _, w := range s.waiters {
		if first := firstIn(o.cache.Missing(w.r), s.rest()); first >= 0 && s.wayTo(first) > far {
			w.wakeLocked()
		}
	}
}

// wakePresentLocked wakes who has all that it waits for.
func (s *stream) wakePresentLocked() {
	for _, w := range s.waiters {
		if s.object.cache.Has(w.r) {
			w.wakeLocked()
		}
	}
}

// work is the goroutine of a stream from its beginning to its end.
func (s *stream) work() {
	o := s.object
	defer o.end(s)
	if err := o.finish(s, s.fetch()); err != nil {
		o.report(err)
	}
}

// report tells OnError. A panic there ends with it: the error is lost, and the
// readers are not.
func (o *Object) report(err error) {
	defer func() {
		if recover() != nil {
			return
		}
	}()
	o.fetcher.options.OnError(o.ID(), err)
}

// finish takes s, which ended with err, out of what waiters may join, tells
// them, and returns an error that none of them got.
func (o *Object) finish(s *stream, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.ended = true
	if i := slices.Index(o.running, s); i >= 0 {
		o.running = slices.Delete(o.running, i, i+1)
	}
	if o.single == s {
		o.single = nil
	}
	if o.closed || s.unwanted {
		err = nil
	}
	if err != nil {
		err = translate(err)
		if errors.Is(err, source.ErrChanged) && o.poison == nil {
			o.poison = err
		}
		if s.ahead != 0 && s.ahead != always {
			o.heads.collapseSerial(s.ahead)
		}
	}
	heard := false
	part := o.partAt(s.pos).Blocks(o.Size())
	for _, w := range s.waiters {
		// What lies in another part is asked for again without this one.
		own := s.hydrate == w.hydrate && !s.demand.Empty() && s.seq > w.born && part.Overlaps(w.r)
		if err != nil && own && !o.cache.Has(w.r.Intersect(s.rest())) {
			w.err, heard = err, true
		}
	}
	s.wakeAllLocked()
	if heard {
		return nil
	}
	return err
}

func (o *Object) end(s *stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endLocked(s)
}

// endLocked gives back what s held; nothing of it runs any more.
func (o *Object) endLocked(s *stream) {
	s.ended = true
	s.wakeAllLocked()
	if o.single == s {
		o.single = nil
	}
	if s.cancel != nil {
		s.cancel()
	}
	if s.memory != nil {
		o.fetcher.memory.release(s.memory)
	}
	o.group.slots.release(s.slot)
	o.live--
	o.ended.Broadcast()
}

func (s *stream) wakeAllLocked() {
	for _, w := range s.waiters {
		w.wakeLocked()
	}
}

// translate gives an error of the source the meaning that it has for a reader.
func translate(err error) error {
	switch {
	case errors.Is(err, source.ErrDenied):
		return fmt.Errorf("%w: %w", ondemand.ErrDenied, err)
	case errors.Is(err, source.ErrBusy):
		return fmt.Errorf("%w: %w", ondemand.ErrOverloaded, err)
	}
	return err
}

// fetch makes the request and writes what comes. A panic of the source, the
// cache or Present ends this stream only.
func (s *stream) fetch() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("fetch: internal error: %v\n%s", p, debug.Stack())
		}
	}()
	o := s.object
	r := s.rest()
	if s.memory == nil {
		memory, err := o.fetcher.memory.acquire(s.ctx, bufferSize(r.Len), false)
		if err != nil {
			return err
		}
		o.mu.Lock()
		s.memory = memory
		o.mu.Unlock()
	}
	o.count.requests.Add(1)
	body, err := o.blob.ReadRange(s.ctx, r.Off, r.Len)
	if err != nil {
		return fmt.Errorf("read %v: %w", r, err)
	}
	defer func() {
		if cerr := body.Close(); cerr != nil && err == nil && s.pos < s.end {
			err = cerr
		}
	}()
	return s.copy(body)
}
