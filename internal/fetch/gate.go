package fetch

import (
	"container/list"
	"context"
	"sync"
)

// gate bounds how much of something is in use at once. Demand may use all of
// it, read-ahead only part; what is released goes to demands that wait, in the
// order they came, and only then to read-ahead that waits.
type gate struct {
	limit      int64 // of both together
	aheadLimit int64 // of read-ahead alone; less than limit

	mu          sync.Mutex
	used, ahead int64 // in use by both; by read-ahead
	peak        int64 // the most that was ever in use
	leaving     int   // tickets that yield and are not released yet
	demands     list.List
	aheads      list.List
}

// ticket stands for what was taken or is waited for.
type ticket struct {
	n     int64
	ahead bool // guarded by gate.mu from enqueue on
	// share: it was admitted as read-ahead, within its share, and has been
	// read-ahead since. It need not yield.
	share bool
	// leaving: it has yielded, and is released soon.
	leaving bool
	start   func()        // called once admitted out of the queue, without gate.mu
	place   *list.Element // in its queue; nil once admitted or withdrawn
}

func newGate(limit, aheadLimit int64) *gate {
	return &gate{limit: limit, aheadLimit: aheadLimit}
}

func (g *gate) fitsLocked(t *ticket) bool {
	if g.used+t.n > g.limit {
		return false
	}
	return !t.ahead || g.ahead+t.n <= g.aheadLimit
}

func (g *gate) takeLocked(t *ticket) {
	g.used += t.n
	g.peak = max(g.peak, g.used)
	if t.ahead {
		g.ahead += t.n
	}
	t.share = t.ahead
}

// tryAhead takes n for read-ahead if it is free and nobody waits, and
// otherwise returns nil.
func (g *gate) tryAhead(n int64) *ticket {
	t := &ticket{n: n, ahead: true}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.demands.Len() > 0 || g.aheads.Len() > 0 || !g.fitsLocked(t) {
		return nil
	}
	g.takeLocked(t)
	return t
}

// enqueue takes t.n and returns true, or queues t: then t.start is called once
// it has it. start must return at once.
func (g *gate) enqueue(t *ticket) (now bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	queue := g.queueLocked(t)
	if queue.Len() > 0 || t.ahead && g.demands.Len() > 0 || !g.fitsLocked(t) {
		t.place = queue.PushBack(t)
		return false
	}
	g.takeLocked(t)
	return true
}

// withdraw takes t out of its queue and tells whether it was still there; if
// not it is admitted, and is to be released.
func (g *gate) withdraw(t *ticket) bool {
	g.mu.Lock()
	if t.place == nil {
		g.mu.Unlock()
		return false
	}
	g.queueLocked(t).Remove(t.place)
	t.place = nil
	admitted := g.admitLocked() // a large ticket may have held back smaller ones
	g.mu.Unlock()
	startAll(admitted)
	return true
}

// queueLocked is where t waits.
func (g *gate) queueLocked(t *ticket) *list.List {
	if t.ahead {
		return &g.aheads
	}
	return &g.demands
}

// release gives back what t took and admits who waits for it.
func (g *gate) release(t *ticket) {
	g.mu.Lock()
	g.used -= t.n
	if t.ahead {
		g.ahead -= t.n
	}
	if t.leaving {
		g.leaving--
	}
	admitted := g.admitLocked()
	g.mu.Unlock()
	startAll(admitted)
}

// count counts a ticket as demand or as read-ahead from now on; one that waits goes
// to the end of the other queue. The share of read-ahead may be exceeded by that:
// yield makes up for it.
func (g *gate) count(t *ticket, ahead bool) {
	g.mu.Lock()
	switch {
	case ahead == t.ahead:
	case t.place != nil:
		g.queueLocked(t).Remove(t.place)
		t.ahead = ahead
		t.place = g.queueLocked(t).PushBack(t)
	default:
		if ahead {
			g.ahead += t.n
		} else {
			g.ahead -= t.n
		}
		t.ahead, t.share = ahead, false
	}
	admitted := g.admitLocked()
	g.mu.Unlock()
	startAll(admitted)
}

// yield tells the holder of an admitted ticket of read-ahead whether to release
// it for a demand that waits, because read-ahead has more than its share, and t is
// part of what is too much.
func (g *gate) yield(t *ticket) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !t.ahead || t.share || g.ahead <= g.aheadLimit || g.leaving >= g.demands.Len() {
		return false
	}
	g.ahead -= t.n
	g.leaving++
	t.ahead, t.leaving = false, true
	return true
}

func (g *gate) admitLocked() []*ticket {
	var admitted []*ticket
	for _, queue := range []*list.List{&g.demands, &g.aheads} {
		for e := queue.Front(); e != nil; e = queue.Front() {
			t := e.Value.(*ticket)
			if !g.fitsLocked(t) {
				break
			}
			queue.Remove(e)
			t.place = nil
			g.takeLocked(t)
			admitted = append(admitted, t)
		}
		if queue.Len() > 0 {
			break
		}
	}
	return admitted
}

func startAll(tickets []*ticket) {
	for _, t := range tickets {
		t.start()
	}
}

// acquire waits for n.
func (g *gate) acquire(ctx context.Context, n int64, ahead bool) (*ticket, error) {
	admitted := make(chan struct{})
	t := &ticket{n: n, ahead: ahead, start: func() { close(admitted) }}
	if g.enqueue(t) {
		return t, nil
	}
	select {
	case <-admitted:
		return t, nil
	case <-ctx.Done():
		if !g.withdraw(t) {
			g.release(t)
		}
		return nil, ctx.Err()
	}
}
