package ondemand

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stormFill does at random whatever a Filler may do, and some that it may not.
func stormFill(objects map[ObjectID]*object, table func() *Table, seed uint64) fillFunc {
	var n atomic.Uint64
	return func(ctx context.Context, id ObjectID, r Range) error {
		rng := rand.New(rand.NewPCG(seed, n.Add(1)))
		o := objects[id]
		switch rng.IntN(8) {
		case 0:
			return errors.New("broken")
		case 1:
			panic("boom")
		case 2:
			return nil // without data
		case 3:
			<-ctx.Done()
			return ctx.Err()
		case 4: // a part, told early, then an error
			head := span(r.Off/BlockSize, 1)
			o.Set(head)
			table().Present(id, head)
			return errors.New("broken afterwards")
		case 5: // more than was asked for
			o.Set(span(r.Off/BlockSize, 64))
			table().Present(id, span(r.Off/BlockSize, 64))
			return nil
		}
		for b := r.Off / BlockSize; b < BlockCount(r.End()); b++ {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			o.Set(span(b, 1))
			if rng.IntN(2) == 0 {
				table().Present(id, span(b, 1))
			}
		}
		return nil
	}
}

// stormRange is aligned to blocks, as Submit asks.
func stormRange(rng *rand.Rand, o *object) Range {
	return span(rng.Int64N(200), 1+rng.Int64N(20)).Intersect(Range{Len: o.Size()})
}

// TestEveryRequestIsAnsweredOnceInAStorm: thousands of requests, fills of every
// kind, flushes, invalidations and a Close at a random moment.
func TestEveryRequestIsAnsweredOnceInAStorm(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { storm(t, seed) })
	}
}

func storm(t *testing.T, seed uint64) {
	const workers, each = 16, 250
	objects := make(map[ObjectID]*object)
	ids := []ObjectID{"a", "b", "c"}
	for _, id := range ids {
		objects[id] = newObject(string(id), 200)
	}
	var table *Table
	table = NewTable(stormFill(objects, func() *Table { return table }, seed), TableOptions{Deadline: 2 * time.Millisecond, LookEvery: time.Millisecond})

	var counts [workers * each]atomic.Int32
	var filled, failed, expired, flushed, gone, pending atomic.Uint64
	pending.Store(workers * each)
	all := make(chan struct{})
	answer := func(i int, err error) {
		if counts[i].Add(1) != 1 {
			t.Errorf("request %d was answered twice", i)
			return
		}
		switch {
		case err == nil:
			filled.Add(1)
		case errors.Is(err, ErrFlushed), errors.Is(err, ErrDetached):
			flushed.Add(1)
		case errors.Is(err, context.DeadlineExceeded):
			expired.Add(1)
		case errors.Is(err, ErrGone):
			gone.Add(1)
		default:
			failed.Add(1)
		}
		if pending.Add(^uint64(0)) == 0 {
			close(all)
		}
	}
	closeAt := rand.New(rand.NewPCG(seed, 1<<32)).IntN(workers*each/2) + workers*each/2
	var submitted atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)+1<<33))
			asleep := make(chan struct{}, 8)
			for i := w * each; i < (w+1)*each; i++ {
				o := objects[ids[rng.IntN(len(ids))]]
				switch n := rng.IntN(1000); {
				case n < 2:
					table.Flush(o.id, ErrDetached)
				case n < 400:
					o.Clear(stormRange(rng, o))
				}
				asleep <- struct{}{}
				table.Submit(o, stormRange(rng, o), Reader{Alive: func() bool { return i%3 != 0 }}, func(err error) {
					answer(i, err)
					<-asleep
				})
				if submitted.Add(1) == int64(closeAt) {
					if err := table.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d requests were never answered", pending.Load())
	}
	if err := table.Close(); err != nil {
		t.Error(err)
	}
	s := table.Stats()
	// A request that finds everything present ends as filled and is not counted.
	if s.Pending != 0 || s.Failed != failed.Load() || s.Expired != expired.Load() || s.Flushed != flushed.Load() || s.Gone != gone.Load() || s.Filled > filled.Load() {
		t.Errorf("counters %+v; answers: %d filled, %d failed, %d expired, %d flushed, %d gone",
			s, filled.Load(), failed.Load(), expired.Load(), flushed.Load(), gone.Load())
	}
	if len(table.objects) != 0 {
		t.Errorf("%d objects are left in the table", len(table.objects))
	}
	t.Logf("%d filled, %d failed, %d expired, %d flushed, %+v", filled.Load(), failed.Load(), expired.Load(), flushed.Load(), s)
}

// submitMany enters many distinct requests on one object, in random order.
func submitMany(table *Table, o *object, many int, answer func(error)) {
	for _, b := range rand.New(rand.NewPCG(1, 2)).Perm(many) {
		table.Submit(o, span(2*int64(b), 1), Reader{}, answer)
	}
}

// TestWorkGrowsWithTheRequestsOnly counts what the table asks the object, which
// it does once or so for a request, however many others wait.
func TestWorkGrowsWithTheRequestsOnly(t *testing.T) {
	const many = 5000
	for name, end := range map[string]func(h *held, table *Table, o *object){
		"failed": func(h *held, _ *Table, _ *object) {
			for _, f := range h.fills {
				f.end <- errors.New("broken")
			}
		},
		"filled": func(h *held, _ *Table, o *object) {
			for _, f := range h.fills {
				f.done(o)
			}
		},
		"flushed": func(_ *held, table *Table, _ *object) { table.Flush("one", ErrDetached) },
		"present": func(_ *held, table *Table, o *object) {
			o.Set(Range{Len: o.Size()})
			table.Present("one", Range{Len: o.Size()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var answered sync.WaitGroup
			answered.Add(many)
			h, o := new(held), newObject("one", 2*many)
			var started sync.WaitGroup
			started.Add(many)
			table := NewTable(fillFunc(func(ctx context.Context, id ObjectID, r Range) error {
				f := &heldFill{id: id, r: r, ctx: ctx, end: make(chan error, 1)}
				h.mu.Lock()
				h.fills = append(h.fills, f)
				h.mu.Unlock()
				started.Done()
				select {
				case err := <-f.end:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}), TableOptions{Deadline: time.Hour})
			submitMany(table, o, many, func(error) { answered.Done() })
			started.Wait()
			if s := table.Stats(); s.Pending != many || s.Fills != many {
				t.Fatalf("counters %+v", s)
			}
			end(h, table, o)
			answered.Wait()
			if err := table.Close(); err != nil {
				t.Fatal(err)
			}
			if n := o.asked.Load(); n > 4*many {
				t.Errorf("%d requests made the table ask the object %d times", many, n)
			}
		})
	}
}

// BenchmarkManyPending is 20,000 distinct requests of one object, submitted and
// then flushed; and 20,000 of one and the same block.
func BenchmarkManyPending(b *testing.B) {
	const many = 20000
	waits := fillFunc(func(ctx context.Context, _ ObjectID, _ Range) error {
		<-ctx.Done()
		return ctx.Err()
	})
	none := func(error) {}
	run := func(submit func(*Table, *object)) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				table, o := NewTable(waits, TableOptions{Deadline: time.Hour}), newObject("one", 2*many)
				submit(table, o)
				table.Flush("one", ErrDetached)
				if err := table.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/many, "ns/request")
		}
	}
	b.Run("Distinct", run(func(table *Table, o *object) { submitMany(table, o, many, none) }))
	b.Run("Same", run(func(table *Table, o *object) {
		for range many {
			table.Submit(o, span(0, 1), Reader{}, none)
		}
	}))
}
