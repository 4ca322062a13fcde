package ondemand

import (
	"context"
	"sort"
	"sync/atomic"
	"time"
)

// request is one sleeping reader.
type request struct {
	object  Object
	r       Range
	answer  func(error)
	timer   *time.Timer
	started time.Time
	waitsOn int64   // the block that keeps it asleep; the key in pendingObject.waiting
	place   int     // in that list; -1 once it has ended
	needs   []*fill // running fills that it needs
}

// fill is one running call of the Filler.
type fill struct {
	r      Range
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
	// fills are the running ones, disjoint, in order of offset.
	fills []*fill
}

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

// attach ties q to the running fills that cover parts of missing and makes new
// fills, not yet started, for the rest.
func (po *pendingObject) attach(q *request, missing []Range) (fresh []*fill, shared bool) {
	for _, m := range missing {
		i := sort.Search(len(po.fills), func(i int) bool { return po.fills[i].r.End() > m.Off })
		for off := m.Off; off < m.End(); {
			if i < len(po.fills) && po.fills[i].r.Off <= off {
				f := po.fills[i]
				f.join(q)
				shared = true
				off = f.r.End()
				i++
				continue
			}
			end := m.End()
			if i < len(po.fills) {
				end = min(end, po.fills[i].r.Off)
			}
			f := newFill(Range{Off: off, Len: end - off})
			f.join(q)
			fresh = append(fresh, f)
			po.fills = append(po.fills, nil)
			copy(po.fills[i+1:], po.fills[i:])
			po.fills[i] = f
			off = end
			i++
		}
	}
	return fresh, shared
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

// covered tells whether a running fill will bring block.
func (po *pendingObject) covered(block int64) bool {
	off := block * BlockSize
	i := sort.Search(len(po.fills), func(i int) bool { return po.fills[i].r.End() > off })
	return i < len(po.fills) && po.fills[i].r.Off <= off
}

// drop takes f out of the running fills, so that later misses start anew.
func (po *pendingObject) drop(f *fill) {
	i := sort.Search(len(po.fills), func(i int) bool { return po.fills[i].r.Off >= f.r.Off })
	if i < len(po.fills) && po.fills[i] == f {
		po.fills = append(po.fills[:i], po.fills[i+1:]...)
	}
}

func overlapsAny(r Range, list []Range) bool {
	for _, m := range list {
		if r.Overlaps(m) {
			return true
		}
	}
	return false
}
