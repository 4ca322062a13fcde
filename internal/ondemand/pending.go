package ondemand

import (
	"context"
	"math"
	"slices"
	"sort"
	"sync/atomic"
	"time"
)

// Reader is what the table is to know of who sleeps for a request.
type Reader struct {
	// Waited is how long it has slept already, in a process before this one; it
	// counts against the deadline.
	Waited time.Duration
	// Alive tells whether there is still somebody to wake, true where that is not
	// known; nil: it is never known. It is asked every LookEvery, and before a
	// deadline is moved on, without a lock, and must not block or panic. The
	// request of a reader that is gone ends with ErrGone and keeps no fill running.
	Alive func() bool
}

// request is one sleeping reader.
type request struct {
	object  Object
	r       Range
	answer  func(error)
	alive   func() bool // as in Reader
	timer   *time.Timer
	started time.Time
	waitsOn int64   // the block that keeps it asleep; the key in pendingObject.waiting
	place   int     // in that list; -1 once it has ended
	needs   []*fill // fills that it needs
	total   int64   // bytes that it missed when it came
	apart   bool    // overlapping fills are allowed: it may have some of its own
}

// fill is one running call of the Filler.
type fill struct {
	r      Range
	level  int // where it stands in pendingObject.levels
	cancel context.CancelFunc
	// requests are the pending ones that need it; without any it is cancelled.
	requests map[*request]struct{}
	// progress is when it last made some, in nanoseconds since the table was made.
	progress atomic.Int64
}

// pendingObject is what the table knows of one object with pending requests.
type pendingObject struct {
	// waiting maps a missing block to the requests whose first missing
	// block it is, so that Present touches only those that it may wake.
	waiting map[int64][]*request
	// levels hold the running fills: those of one level are disjoint and in order
	// of offset. A fill is on the first level where it has room: on one above
	// the first only because all below are taken by fills that are too large to
	// wait for, each at least largeRatio times as long. So there are few levels.
	levels [][]*fill
}

// A request does not wait for a fill that is longer than largeFill and at least
// largeRatio times as long as all that the request misses: it gets fills of its own,
// where the object says that fills may overlap. largeFill is well under a second on
// a usual link; for what is larger, a small read would wait as long as a
// download takes. largeRatio bounds how much longer than for its own data a request
// may have to wait, and how much of a large fill can be asked for twice.
const (
	largeFill  = 8 << 20
	largeRatio = 8
)

// wait files q under the block that keeps it asleep.
func (po *pendingObject) wait(q *request, block int64) {
	list := po.waiting[block]
	q.waitsOn, q.place = block, len(list)
	po.waiting[block] = append(list, q)
}

// unwait takes q out of waiting; false when it is not there.
func (po *pendingObject) unwait(q *request) bool {
	if q.place < 0 {
		return false
	}
	list := po.waiting[q.waitsOn]
	last := len(list) - 1
	list[q.place] = list[last]
	list[q.place].place = q.place
	list[last] = nil
	if last == 0 {
		delete(po.waiting, q.waitsOn)
	} else {
		po.waiting[q.waitsOn] = list[:last]
	}
	q.place = -1
	return true
}

// attach ties q to the running fills that serve parts of missing and makes new
// fills, not yet started, for the rest.
func (po *pendingObject) attach(q *request, missing []Range) (fresh []*fill, shared bool) {
	for _, m := range missing {
		for off := m.Off; off < m.End(); {
			f, level, end := po.find(q, off)
			if f != nil {
				shared = true
			} else {
				f = newFill(Range{Off: off, Len: min(end, m.End()) - off})
				fresh = append(fresh, f)
				po.insert(f, level)
			}
			f.join(q)
			off = f.r.End()
		}
	}
	return fresh, shared
}

// find returns the running fill that serves q's byte at off. Where there is none, a
// new one has its place on level and may go on up to end.
func (po *pendingObject) find(q *request, off int64) (f *fill, level int, end int64) {
	level, end = -1, math.MaxInt64
	for l, fills := range po.levels {
		i := sort.Search(len(fills), func(i int) bool { return fills[i].r.End() > off })
		switch {
		case i < len(fills) && fills[i].r.Off <= off:
			if !fills[i].tooLargeFor(q) {
				return fills[i], l, 0
			}
			continue
		case i < len(fills):
			end = min(end, fills[i].r.Off)
		}
		if level < 0 {
			level = l
		}
	}
	if level < 0 {
		level = len(po.levels)
	}
	return nil, level, end
}

// tooLargeFor tells whether q would wait too long for f. Its total stays what it was
// when q came: while its blocks come from a fill, that fill goes on serving it.
func (f *fill) tooLargeFor(q *request) bool {
	return q.apart && f.r.Len > largeFill && q.total <= f.r.Len/largeRatio
}

func (po *pendingObject) insert(f *fill, level int) {
	if level == len(po.levels) {
		po.levels = append(po.levels, nil)
	}
	f.level = level
	fills := po.levels[level]
	i := sort.Search(len(fills), func(i int) bool { return fills[i].r.Off >= f.r.Off })
	po.levels[level] = slices.Insert(fills, i, f)
}

func newFill(r Range) *fill { return &fill{r: r, requests: make(map[*request]struct{}, 1)} }

// join makes q need f, if it does not yet.
func (f *fill) join(q *request) {
	if _, ok := f.requests[q]; ok {
		return
	}
	q.needs = append(q.needs, f)
	f.requests[q] = struct{}{}
}

// drop takes f out of the running fills, so that later misses start anew.
func (po *pendingObject) drop(f *fill) {
	fills := po.levels[f.level]
	i := sort.Search(len(fills), func(i int) bool { return fills[i].r.Off >= f.r.Off })
	if i < len(fills) && fills[i] == f {
		po.levels[f.level] = slices.Delete(fills, i, i+1)
	}
}

// idle tells whether nobody waits and nothing runs.
func (po *pendingObject) idle() bool {
	return len(po.waiting) == 0 && !slices.ContainsFunc(po.levels, func(fills []*fill) bool { return len(fills) > 0 })
}

func overlapsAny(r Range, list []Range) bool {
	for _, m := range list {
		if r.Overlaps(m) {
			return true
		}
	}
	return false
}
