package fetch

import (
	"errors"
	"slices"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

const (
	// tellEvery is how often at most a stream tells that data keeps coming;
	// well below any deadline.
	tellEvery = 5 * time.Millisecond

	// yieldAfter is how long the stream of an ordered blob has no reader before
	// it makes room: longer than a reader takes from one read to the next.
	yieldAfter = 2 * time.Second
)

// errYielded ends a stream that makes room for a demand. Nobody is told it.
var errYielded = errors.New("stream made room for a demand")

// goOn tells those who wait for s that data came, of which n bytes are new, so that
// no deadline ends them, and ends s where it holds what a demand needs more. Less
// than a block since it last told is not told: a source that sends a byte now
// and then would hold a reader for ever. So the lowest rate that is waited for is
// a block in the table's deadline.
func (s *stream) goOn(n int) error {
	s.untold += n
	now := time.Now()
	if now.Sub(s.told) < tellEvery {
		return nil
	}
	s.told = now
	o := s.object
	o.mu.Lock()
	defer o.mu.Unlock()
	if s.untold >= ondemand.BlockSize {
		s.untold = 0
		s.tellLocked()
	}
	if s.unwanted || s.idle.IsZero() || now.Sub(s.idle) < yieldAfter || !o.group.slots.yield(s.slot) {
		return nil
	}
	s.unwanted = true
	if o.single == s {
		o.single = nil
	}
	for _, w := range s.waiters {
		w.tries-- // it is no fault of theirs
	}
	return errYielded
}

// tellLocked tells who waits for s that data came.
func (s *stream) tellLocked() {
	for _, w := range s.waiters {
		// Who wants what lies far ahead waits for a stream of their own.
		if s.object.ordered || s.wayTo(w.r.Intersect(s.rest()).Off) <= far {
			ondemand.Progress(w.ctx)
		}
	}
}

// reckonLocked counts a stream that waits its turn, and that of an ordered blob always,
// as read-ahead while no reader waits for it, and as a demand while one does.
func (o *Object) reckonLocked(s *stream) {
	if s.unwanted || s.ended || s.slot == nil {
		return
	}
	if s.queued {
		o.group.slots.count(s.slot, !s.hasReader())
		return
	}
	if idle := !s.hasReader(); o.ordered && idle == s.idle.IsZero() {
		s.idle = time.Time{}
		if idle {
			s.idle = time.Now()
		}
		o.group.slots.count(s.slot, idle)
	}
}

// hasReader tells whether a reader is behind any who waits for s.
func (s *stream) hasReader() bool {
	return slices.ContainsFunc(s.waiters, func(w *waiter) bool { return !w.patient })
}
