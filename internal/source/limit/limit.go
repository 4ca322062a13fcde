// Package limit bounds how many requests a group of blobs makes at once, and
// lets those that a reader waits for go before those made ahead of reads.
//
// A request holds its place from ReadRange until its reader is closed. Whoever
// holds readers open while asking for more can wait for itself; a context with a deadline ends that.
package limit

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
)

// Group is the places that blobs share.
//
// Demand goes before read-ahead: a place that becomes free goes to the longest
// waiting demand, and only without one to read-ahead. Where there is more than
// one place, read-ahead never takes the last, because its requests are long
// and a reader would sleep through one.
type Group struct {
	mu    sync.Mutex
	n     int // places
	taken int
	ahead int // of them by read-ahead
	queue [2][]chan struct{}
}

type priority int

const (
	demand priority = iota
	ahead
)

// NewGroup makes a group of n places; n < 1 counts as 1.
func NewGroup(n int) *Group { return &Group{n: max(n, 1)} }

// Demand is b for reads that somebody waits for.
func (g *Group) Demand(b source.Blob) source.Blob {
	return &blob{source.Wrapper{Blob: b}, g, demand}
}

// Ahead is b for reads that nobody waits for yet.
func (g *Group) Ahead(b source.Blob) source.Blob {
	return &blob{source.Wrapper{Blob: b}, g, ahead}
}

// InUse is how many places are taken, and how many requests of either kind wait.
func (g *Group) InUse() (taken, demandWaits, aheadWaits int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taken, len(g.queue[demand]), len(g.queue[ahead])
}

// freeLocked tells whether a request of priority p may start.
func (g *Group) freeLocked(p priority) bool {
	if g.taken >= g.n {
		return false
	}
	return p == demand || len(g.queue[demand]) == 0 && (g.n == 1 || g.ahead < g.n-1)
}

func (g *Group) takeLocked(p priority) {
	g.taken++
	if p == ahead {
		g.ahead++
	}
}

func (g *Group) acquire(ctx context.Context, p priority) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	if len(g.queue[p]) == 0 && g.freeLocked(p) {
		g.takeLocked(p)
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.queue[p] = append(g.queue[p], turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		return g.leave(turn, p, ctx.Err())
	}
}

// leave takes a request out of the queue, or gives back the place that it got
// at the same moment.
func (g *Group) leave(turn chan struct{}, p priority, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.queue[p], turn); i >= 0 {
		g.queue[p] = slices.Delete(g.queue[p], i, i+1)
	} else {
		g.giveBackLocked(p)
	}
	g.callLocked() // read-ahead may have waited only for this demand
	return err
}

func (g *Group) release(p priority) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.giveBackLocked(p)
	g.callLocked()
}

func (g *Group) giveBackLocked(p priority) {
	g.taken--
	if p == ahead {
		g.ahead--
	}
}

// callLocked starts whoever may start now.
func (g *Group) callLocked() {
	for _, p := range []priority{demand, ahead} {
		for len(g.queue[p]) > 0 && g.freeLocked(p) {
			g.takeLocked(p)
			close(g.queue[p][0])
			g.queue[p] = g.queue[p][1:]
		}
	}
}

type blob struct {
	source.Wrapper
	group    *Group
	priority priority
}

// ReadRange waits for a place first.
func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, fmt.Errorf("read in a group: %w", err)
	}
	if err := b.group.acquire(ctx, b.priority); err != nil {
		return nil, fmt.Errorf("wait for one of %d requests: %w", b.group.n, err)
	}
	free := sync.OnceFunc(func() { b.group.release(b.priority) })
	r, err := b.Blob.ReadRange(ctx, off, n)
	if err != nil {
		free()
		return nil, err
	}
	return &reader{r, free}, nil
}

type reader struct {
	io.ReadCloser
	free func()
}

// Refute implements source.Refutable.
func (r *reader) Refute() bool { return source.Refute(r.ReadCloser) }

func (r *reader) Close() error {
	defer r.free()
	return r.ReadCloser.Close()
}
