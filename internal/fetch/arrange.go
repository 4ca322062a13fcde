package fetch

import (
	"slices"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// aheadParts is how many requests one window may take: where more pieces of it
// are missing, the window ends earlier.
const aheadParts = 4

// arrangeLocked sees to it that a stream is about to bring each block of w.r
// that is missing, and that w waits for it; it returns true when none is
// missing. It also begins the read-ahead that a asks for.
func (o *Object) arrangeLocked(w *waiter, a advice) (bool, error) {
	before := o.detachLocked(w)
	defer func() { o.endAllUnwantedLocked(before) }()
	missing, need := o.lookLocked(w)
	switch {
	case o.closed:
		return false, ondemand.ErrDetached
	case o.denied.Load():
		return false, o.poison
	case len(need) == 0:
		return true, nil
	case w.err != nil:
		return false, w.err
	case o.poison != nil:
		return false, o.poison
	}
	var rest []ondemand.Range
	if !o.ordered {
		rest = o.joinLocked(w, missing, need)
	} else if o.single != nil {
		o.waitLocked(w, o.single)
	} else {
		rest = []ondemand.Range{{Len: o.Size()}}
	}
	if len(rest) > 0 {
		if w.tries++; w.tries > maxTries {
			return false, ondemand.ErrNotFilled
		}
	}
	parts := o.aheadPartsLocked(a)
	if n := len(rest); n > 0 && len(parts) > 0 && parts[0].Off-rest[n-1].End() <= joinGap {
		if o.combineLocked(w, rest[n-1], parts[0], a) {
			rest, parts = rest[:n-1], parts[1:]
		}
	}
	for _, r := range rest {
		s := o.newStreamLocked(r)
		s.demand = r
		if o.ordered {
			s.ahead = always
			o.single = s
		}
		o.waitLocked(w, s)
		o.enqueueLocked(s, w)
	}
	o.aheadLocked(a, parts)
	return false, nil
}

// lookLocked is what is missing of what to ask for, and that part of it which w
// needs. Both come of one look: a stream that is unwanted writes on, and a block
// that it brings between two looks would be needed and in no stream's way.
func (o *Object) lookLocked(w *waiter) (missing, need []ondemand.Range) {
	wide := w.r
	if !o.ordered {
		wide = o.reach(w.r)
	}
	missing = o.cache.Missing(wide)
	for _, r := range missing {
		if x := r.Intersect(w.r.Blocks(o.Size())); !x.Empty() {
			need = append(need, x)
		}
	}
	return missing, need
}

// joinLocked makes w wait for the streams that will bring blocks that it
// needs, and returns what of missing none of them brings soon, as ranges to
// request.
func (o *Object) joinLocked(w *waiter, missing, need []ondemand.Range) []ondemand.Range {
	rest := join(missing)
	for _, s := range o.running {
		first := firstIn(need, s.rest())
		if s.unwanted || first < 0 {
			continue
		}
		o.waitLocked(w, s)
		if s.wayTo(first) <= far {
			rest = subtract(rest, s.rest())
		}
	}
	for _, s := range o.queuedLocked(o.reach(w.r)) {
		if firstIn(need, s.rest()) >= 0 {
			o.waitLocked(w, s)
		}
		rest = subtract(rest, s.rest())
	}
	return slices.DeleteFunc(rest, func(r ondemand.Range) bool { return firstIn(need, r) < 0 })
}

// reach is what is asked for where r is needed: no more than what fails or comes
// together with it, so that a reader gets no error of bytes that it does not read.
func (o *Object) reach(r ondemand.Range) ondemand.Range {
	wide := o.align(widen(r, o.Size()))
	if r.Empty() {
		return wide
	}
	first, last := o.partAt(r.Off), o.partAt(r.End()-1)
	return wide.Intersect(ondemand.Range{Off: first.Off, Len: last.End() - first.Off}.Blocks(o.Size()))
}

// partAt is what fails or comes together with the byte at off, or with the last one.
func (o *Object) partAt(off int64) ondemand.Range {
	from, n := source.Part(o.blob, max(0, min(off, o.Size()-1)))
	return ondemand.Range{Off: from, Len: n}
}

// partEnd is where what comes together with the byte before off ends: read-ahead
// goes no further, for whoever reads what is behind must not wait for it.
func (o *Object) partEnd(off int64) int64 {
	if off <= 0 {
		return o.Size()
	}
	from, n := source.Part(o.blob, off-1)
	return from + n
}

// align is r as the source would rather be asked for it, in whole blocks.
func (o *Object) align(r ondemand.Range) ondemand.Range {
	if r.Empty() {
		return r
	}
	off, n := source.Align(o.blob, r.Off, r.Len)
	return ondemand.Range{Off: off, Len: n}.Blocks(o.Size())
}

// wayTo is how much the source has to send until s brings the byte at off: what
// it sends in pieces that come whole is there with the first byte of its piece.
func (s *stream) wayTo(off int64) int64 {
	return s.object.align(ondemand.Range{Off: off, Len: 1}.Intersect(ondemand.Range{Len: s.object.Size()})).Off - s.pos
}

// paidLocked is the end of what s brings at no more cost: of a piece that has
// begun to come all has been fetched, and would be fetched whole again. The block before
// may have needed it.
func (s *stream) paidLocked() int64 {
	o := s.object
	piece := o.align(ondemand.Range{Off: s.pos, Len: 1}.Intersect(s.rest()))
	if piece.Off == s.pos && s.pos > s.from {
		before := max(s.pos-ondemand.BlockSize, 0)
		piece = o.align(ondemand.Range{Off: before, Len: s.pos - before})
	}
	if piece.Off < s.pos {
		return min(max(piece.End(), s.pos), s.end)
	}
	return s.pos
}

// aheadPartsLocked is what a asks for and nobody brings yet.
func (o *Object) aheadPartsLocked(a advice) []ondemand.Range {
	if a.head < 0 || a.ahead.Empty() {
		return nil
	}
	parts := join(o.cache.Missing(o.align(a.ahead)))
	for _, s := range o.running {
		if !s.unwanted {
			parts = subtract(parts, s.rest())
		}
	}
	for _, s := range o.queuedLocked(o.align(a.ahead)) {
		parts = subtract(parts, s.rest())
	}
	for i := range parts {
		parts[i] = o.apart(parts[i])
	}
	return parts
}

// apart is r without its first block where that needs a piece before r as well, which may
// just be coming: whoever reads the block finds both parts of it.
func (o *Object) apart(r ondemand.Range) ondemand.Range {
	first := ondemand.Range{Off: r.Off, Len: min(r.Len, ondemand.BlockSize)}
	rest := ondemand.Range{Off: first.End(), Len: r.Len - first.Len}
	if rest.Empty() || o.align(first).Off == r.Off || o.align(rest).Off < rest.Off {
		return r
	}
	return rest
}

// combineLocked begins one stream for what w demands and the first part of the
// window behind it, if read-ahead is admitted now.
func (o *Object) combineLocked(w *waiter, r, part ondemand.Range, a advice) bool {
	s := o.newStreamLocked(ondemand.Range{Off: r.Off, Len: part.End() - r.Off})
	s.demand, s.ahead = r, a.serial
	o.waitLocked(w, s)
	if o.beginAheadLocked(s) {
		return true
	}
	o.live--
	s.waiters = nil
	w.streams = w.streams[:len(w.streams)-1]
	return false
}

// aheadLocked begins streams for the parts of a window, as far as they are
// admitted now, and tells the head.
func (o *Object) aheadLocked(a advice, parts []ondemand.Range) {
	if a.head < 0 {
		return
	}
	end := o.align(a.ahead).End()
	for i, r := range parts {
		if i == aheadParts {
			end = r.Off
			break
		}
		s := o.newStreamLocked(r)
		s.ahead = a.serial
		if !o.beginAheadLocked(s) {
			o.live--
			end = r.Off
			break
		}
	}
	o.heads.granted(a, end, o.partEnd(a.ahead.Off))
}

// cross begins the window behind the one whose trigger a reader crossed.
func (o *Object) cross(head int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.poison != nil {
		return
	}
	a := o.heads.cross(head, o.partEnd(o.heads.all[head].hi.Load()))
	o.aheadLocked(a, o.aheadPartsLocked(a))
}

// dropLocked gives up the read-ahead of heads that collapsed.
func (o *Object) dropLocked(serials []uint64) {
	if len(serials) == 0 {
		return
	}
	for _, s := range o.running {
		if slices.Contains(serials, s.ahead) {
			s.ahead = 0
			o.endUnwantedLocked(s)
		}
	}
}

func (o *Object) waitLocked(w *waiter, s *stream) {
	w.streams = append(w.streams, s)
	s.waiters = append(s.waiters, w)
	o.reckonLocked(s)
}

// forgetLocked makes w wait for nothing, and ends the streams that nobody
// wants then.
func (o *Object) forgetLocked(w *waiter) { o.endAllUnwantedLocked(o.detachLocked(w)) }

// detachLocked makes w wait for nothing and returns what it waited for, which is to
// be given to endAllUnwantedLocked: only after w has joined again what it still
// needs, so that a stream that waits its turn keeps its place.
func (o *Object) detachLocked(w *waiter) []*stream {
	for _, s := range w.streams {
		// From the end: a stream that wakes its waiters begins there.
		for i := len(s.waiters) - 1; i >= 0; i-- {
			if s.waiters[i] == w {
				last := len(s.waiters) - 1
				s.waiters[i] = s.waiters[last]
				s.waiters[last] = nil
				s.waiters = s.waiters[:last]
				break
			}
		}
	}
	before := w.streams
	w.streams = nil
	return before
}

func (o *Object) endAllUnwantedLocked(streams []*stream) {
	for _, s := range streams {
		o.endUnwantedLocked(s)
		o.reckonLocked(s)
	}
}

// endUnwantedLocked ends s if nobody wants it and more than a little is left, or
// anything where a Fill cannot return before. What the source has sent in any case
// is not thrown away. One that has not begun is not wanted by itself: who comes
// next begins it.
func (o *Object) endUnwantedLocked(s *stream) {
	switch {
	case len(s.waiters) > 0 || s.unwanted || s.ended:
	case s.queued:
		o.endQueuedLocked(s)
	case s.ahead != 0:
	case s.end-s.paidLocked() > drain || s.abandoned && s.paidLocked() < s.end:
		s.unwanted = true
		s.cancel()
	}
}

// endQueuedLocked ends a stream that has not begun.
func (o *Object) endQueuedLocked(s *stream) {
	o.unqueueLocked(s)
	s.unwanted = true
	if o.single == s {
		o.single = nil
	}
	if o.group.slots.withdraw(s.slot) {
		o.live--
		o.ended.Broadcast()
	} // otherwise it was admitted just now, and run ends it
}

// enqueueLocked begins s as soon as it is admitted, as a demand if a reader waits for
// it: a Hydrate that begins anew takes no more than its share. Where that is at once, the first stream of a Fill runs on the goroutine of w: to wake another
// one would take a good part of a short miss.
func (o *Object) enqueueLocked(s *stream, w *waiter) {
	s.queued = true
	o.queue = slices.Insert(o.queue, o.queueIndex(s.pos), s)
	s.slot = &ticket{n: 1, ahead: !s.hasReader(), start: func() { go s.run() }}
	switch {
	case !o.group.slots.enqueue(s.slot):
	case w.own == nil && !o.ordered && !w.hydrate:
		w.own = s
	default:
		go s.run()
	}
}

// queueIndex is the place of the first queued stream that ends behind off.
func (o *Object) queueIndex(off int64) int {
	i, _ := slices.BinarySearchFunc(o.queue, off, func(s *stream, off int64) int {
		if s.end <= off {
			return -1
		}
		return 1
	})
	return i
}

// queuedLocked are the queued streams that overlap r.
func (o *Object) queuedLocked(r ondemand.Range) []*stream {
	first := o.queueIndex(r.Off)
	last := first
	for last < len(o.queue) && o.queue[last].pos < r.End() {
		last++
	}
	return o.queue[first:last]
}

func (o *Object) unqueueLocked(s *stream) {
	i := o.queueIndex(s.pos)
	o.queue = slices.Delete(o.queue, i, i+1)
	s.queued = false
}
