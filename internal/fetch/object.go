package fetch

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// maxTries is how many streams one Fill begins for blocks that do not become
// present although the streams succeed, as on a disk that loses writes.
const maxTries = 8

// Object is an object that a Fetcher fills. It implements ondemand.Object.
type Object struct {
	fetcher *Fetcher
	group   *group
	cache   CacheObject
	blob    source.Blob
	ordered bool // the source gives its bytes from 0 on only
	ctx     context.Context
	cancel  context.CancelFunc

	heads  heads
	denied atomic.Bool // the data was found wrong: nothing counts as present
	count  counters
	writes writes

	mu      sync.Mutex
	ended   *sync.Cond // a stream or the verification ended
	closed  bool
	poison  error     // why nothing is fetched any more
	running []*stream // admitted, in the order begun
	queue   []*stream // of demand, not admitted yet, by offset; they do not overlap
	single  *stream   // the one stream of a blob that is ordered
	live    int       // goroutines: streams and verification; and streams in queue
	fills   int       // callers inside fill and Hydrate
	clock   uint64    // orders the coming of waiters and the beginning of streams
	digest  verification
}

// waiter is a Fill that sleeps, or is about to.
type waiter struct {
	r       ondemand.Range
	born    uint64
	tries   int
	streams []*stream     // that it waits for
	own     *stream       // among them one that is admitted and that its goroutine is to run
	wake    chan struct{} // holds one token
	err     error         // of its own attempt
	hydrate bool          // it is a Hydrate's, with a stream of its own
	patient bool          // no reader is behind it
	ctx     context.Context
}

func newObject(f *Fetcher, g *group, obj CacheObject, blob source.Blob) *Object {
	o := &Object{fetcher: f, group: g, cache: obj, blob: blob, ordered: source.IsSequential(blob)}
	o.ctx, o.cancel = context.WithCancel(f.ctx)
	o.ended = sync.NewCond(&o.mu)
	return o
}

// ID implements ondemand.Object.
func (o *Object) ID() ondemand.ObjectID { return o.cache.ID() }

// Size implements ondemand.Object.
func (o *Object) Size() int64 { return o.cache.Size() }

// Has implements ondemand.Object. It takes no lock.
func (o *Object) Has(r ondemand.Range) bool {
	if i := o.heads.seen(r); i >= 0 {
		select {
		case o.fetcher.kicks <- kick{o, i}:
		default: // so many are due that this one can wait for a miss
		}
	}
	return o.cache.Has(r) && !o.denied.Load()
}

// Missing implements ondemand.Object.
func (o *Object) Missing(r ondemand.Range) []ondemand.Range {
	if o.denied.Load() {
		return []ondemand.Range{r.Blocks(o.Size())}
	}
	return o.cache.Missing(r)
}

// Complete implements ondemand.Object. An object with an expected digest is
// complete only once it was verified.
func (o *Object) Complete() bool {
	if !o.cache.Complete() || o.denied.Load() {
		return false
	}
	d, ok := o.cache.(Digested)
	return !ok || d.SHA256() == "" || d.Verified()
}

// Filling implements ondemand.FilledHere.
func (o *Object) Filling(r ondemand.Range) bool { return o.writes.cover(r) }

// FillsApart implements ondemand.FillsApart: a Fill that lies far ahead in what
// another has asked for makes a request of its own, except where the source
// can be read in one way only.
func (o *Object) FillsApart() bool { return !o.ordered }

// fill returns once r is present.
func (o *Object) fill(ctx context.Context, r ondemand.Range) error {
	return o.fillRange(ctx, r, true)
}

// fillRange does what fill does; follow says that a reader is behind it, whose
// way through the object is worth noting.
func (o *Object) fillRange(ctx context.Context, r ondemand.Range, follow bool) error {
	r = r.Intersect(ondemand.Range{Len: o.Size()})
	if o.cache.Has(r) && !o.denied.Load() {
		return nil
	}
	if !o.enter() {
		return ondemand.ErrDetached
	}
	defer o.leave()
	if err := o.ready(ctx, r); err != nil {
		return err
	}
	w := &waiter{r: r, wake: make(chan struct{}, 1), patient: !follow, ctx: ctx}
	defer o.forget(w)
	done, err := o.arrangeFirst(w, follow)
	for !done && err == nil {
		o.runOwn(w)
		select {
		case <-w.wake:
			done, err = o.arrange(w)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return err
}

// ready has the source learn how the bytes of r come, which arrange asks it with
// o.mu held.
func (o *Object) ready(ctx context.Context, r ondemand.Range) error {
	if _, needed := o.blob.(source.Readied); !needed {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	err := source.Ready(ctx, o.blob, r.Off, r.Len)
	if err != nil && o.ctx.Err() != nil {
		return ondemand.ErrDetached
	}
	return translate(err)
}

// runOwn runs the stream that arrange left to w's goroutine, if any. w may have
// all that it waits for before the stream ends: who needs to know earlier is told
// by Present.
func (o *Object) runOwn(w *waiter) {
	s := w.own
	if s == nil {
		return
	}
	w.own = nil
	defer context.AfterFunc(w.ctx, func() { o.abandon(w, s) })()
	s.run()
}

// abandon makes w wait for nothing and has s end as soon as nobody else waits for
// it.
func (o *Object) abandon(w *waiter, s *stream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.abandoned = true
	o.forgetLocked(w)
}

// arrangeFirst is arrange for a waiter that just came.
func (o *Object) arrangeFirst(w *waiter, follow bool) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clock++
	w.born = o.clock
	a := advice{head: -1}
	if follow && !o.ordered && o.poison == nil {
		a = o.heads.miss(w.r.Off, o.reach(w.r), o.partEnd(w.r.End()))
		o.dropLocked(a.dropped)
	}
	return o.arrangeLocked(w, a)
}

func (o *Object) arrange(w *waiter) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.arrangeLocked(w, advice{head: -1})
}

func (o *Object) forget(w *waiter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgetLocked(w)
}

func (o *Object) enter() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.fills++
	return true
}

func (o *Object) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fills--
	o.ended.Broadcast()
}

// close ends all work for o and waits for it.
func (o *Object) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cancel()
	for _, s := range o.running {
		s.wakeAllLocked()
	}
	for len(o.queue) > 0 {
		s := o.queue[0]
		s.wakeAllLocked()
		o.endQueuedLocked(s)
	}
	for o.live > 0 || o.fills > 0 {
		o.ended.Wait()
	}
}

// wakeLocked makes w look again.
func (w *waiter) wakeLocked() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
