package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// readBack fails unless r is present with the pattern's bytes.
func (g *rig) readBack(r ondemand.Range) error {
	if !g.cache.Has(r) {
		return fmt.Errorf("%v is missing after its fill", r)
	}
	got := make([]byte, r.Len)
	if _, err := g.cache.ReadAt(got, r.Off); err != nil {
		return err
	}
	if !bytes.Equal(got, pattern(r.Off, r.Len)) {
		return fmt.Errorf("wrong bytes in %v", r)
	}
	return nil
}

// settled fails if something is still held when nothing is asked for any more.
func (g *rig) settled(t rapid.TB) {
	g.Close()
	if g.memory.used != 0 || g.memory.ahead != 0 {
		t.Errorf("%d bytes of buffers are held", g.memory.used)
	}
	if s := g.object.group.slots; s.used != 0 || s.ahead != 0 {
		t.Errorf("%d slots are held", s.used)
	}
	if o := g.object; len(o.running) > 0 || len(o.queue) > 0 || o.live > 0 || o.single != nil {
		t.Errorf("%d streams run, %d wait, %d live", len(o.running), len(o.queue), o.live)
	}
}

// unsteady is a blob that breaks by chance.
type unsteady struct {
	source.Wrapper
	mu   sync.Mutex
	rand *rand.Rand
	odds int // one in so many operations breaks; 0: none
}

func (u *unsteady) breaks() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.odds == 0 || u.rand.IntN(u.odds) != 0 {
		return -1
	}
	return u.rand.IntN(4)
}

func (u *unsteady) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if u.breaks() == 0 {
		return nil, errBroken
	}
	r, err := u.Blob.ReadRange(ctx, off, n)
	return &unsteadyBody{r, u}, err
}

type unsteadyBody struct {
	io.ReadCloser
	u *unsteady
}

func (b *unsteadyBody) Read(p []byte) (int, error) {
	switch b.u.breaks() {
	case 0:
		return 0, errBroken
	case 1:
		return 0, io.EOF // too early, or just in time
	case 2:
		panic("broken")
	case 3:
		p = p[:min(len(p), 1000)]
	}
	return b.ReadCloser.Read(p)
}

// TestReadersGetTheBytesOrAnError runs random readers against a source, and a
// cache, that break by chance.
func TestReadersGetTheBytesOrAnError(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 16*mib).Draw(rt, "size")
		seed := rapid.Uint64().Draw(rt, "seed")
		odds := rapid.SampledFrom([]int{0, 3, 30}).Draw(rt, "odds")
		readers := rapid.IntRange(1, 8).Draw(rt, "readers")
		var u *unsteady
		g := newRigOn(t, size, func(g *rig, o *Options) {
			g.blob.free = true
			g.blob.ordered = rapid.IntRange(0, 4).Draw(rt, "ordered") == 0
			o.Conns = rapid.IntRange(1, 6).Draw(rt, "conns")
			o.Memory = 1 * mib
			u = &unsteady{Wrapper: source.Wrapper{Blob: g.blob}, rand: rand.New(rand.NewPCG(seed, 0)), odds: odds}
			g.cache.onFill = func(ondemand.Range) error {
				if u.breaks() == 0 {
					return errBroken
				}
				return nil
			}
		}, func(g *rig) source.Blob { return u })
		var wg sync.WaitGroup
		problems := make(chan error, 1000)
		for i := range readers {
			wg.Go(func() { g.reader(rand.New(rand.NewPCG(seed, uint64(i+1))), odds > 0, problems) })
		}
		wg.Wait()
		close(problems)
		for err := range problems {
			rt.Error(err)
		}
		u.mu.Lock()
		u.odds = 0
		u.mu.Unlock()
		if err := g.Hydrate(t.Context(), testID, nil); err != nil {
			rt.Errorf("hydrate at the end: %v", err)
		}
		if err := g.readBack(ondemand.Range{Len: size}); err != nil {
			rt.Error(err)
		}
		g.settled(rt)
	})
}

// A stream that nobody wants any more writes what has come. A block that becomes
// present so at any moment of a Fill's beginning leaves no reader asleep.
func TestBlockComesWhileAFillBegins(t *testing.T) {
	for nth, fired := 1, true; fired; nth++ {
		synctest.Test(t, func(t *testing.T) {
			g := newRig(t, 64*kib, func(g *rig, _ *Options) { g.blob.free, g.cache.mayRewrite = true, true })
			looks := 0
			g.cache.onLook = func() {
				if looks++; looks == nth {
					if err := g.cache.Fill(pattern(0, 64*kib), 0); err != nil {
						t.Error(err)
					}
				}
			}
			f := g.start(0, 1)
			f.succeeds()
			g.read(0, 1)
			g.settled(t)
			fired = looks >= nth
		})
	}
}

// reader reads at random, now and then in a row, and gives up some reads.
func (g *rig) reader(rnd *rand.Rand, mayFail bool, problems chan<- error) {
	off := int64(0)
	for range 40 {
		if rnd.IntN(4) == 0 {
			off = rnd.Int64N(g.cache.size)
		}
		r := ondemand.Clip(uint64(off), uint64(rnd.Int64N(512*kib)+1), g.cache.size)
		off = r.End() % g.cache.size
		if g.object.Has(r) {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		if rnd.IntN(8) == 0 {
			go cancel()
		}
		err := g.Fill(ctx, testID, r)
		cancel()
		if err == nil {
			err = g.readBack(r)
		} else if mayFail || errors.Is(err, context.Canceled) {
			continue
		}
		if err != nil {
			problems <- fmt.Errorf("read %v: %w", r, err)
		}
	}
}

// workload reads in a row and at random, and then everything. Errors are let
// pass; wrong bytes are not.
func (g *rig) workload(t *testing.T) (failed int) {
	reads := []ondemand.Range{{Off: 1500 * kib, Len: 4 * kib}, {Off: 1700 * kib, Len: 200 * kib}}
	for off := int64(0); off < 1*mib; off += 128 * kib {
		reads = append(reads, ondemand.Range{Off: off, Len: 128 * kib})
	}
	for _, r := range reads {
		if g.object.Has(r) {
			continue
		}
		if err := g.Fill(t.Context(), testID, r); err != nil {
			failed++
		} else if err := g.readBack(r); err != nil {
			t.Error(err)
		}
	}
	if err := g.Hydrate(t.Context(), testID, nil); err != nil {
		failed++
	}
	return failed
}

func TestNthOperationFails(t *testing.T) {
	const size = 2*mib + 100
	for _, ordered := range []bool{false, true} {
		for _, where := range []string{"source", "cache"} {
			t.Run(fmt.Sprintf("%s, ordered %v", where, ordered), func(t *testing.T) {
				for nth, fired := int64(1), true; fired; nth++ {
					var failing *sourcetest.Failing
					var fills atomic.Int64
					g := newRigOn(t, size, func(g *rig, _ *Options) {
						g.blob.free, g.blob.ordered = true, ordered
						// The last piece of a stream that was cancelled
						// and the same one of its successor.
						g.cache.mayRewrite = true
						g.cache.sum = patternSum(size)
						if where == "cache" {
							g.cache.onFill = func(ondemand.Range) error {
								if fills.Add(1) == nth {
									return errBroken
								}
								return nil
							}
						}
					}, func(g *rig) source.Blob {
						if where == "cache" {
							return g.blob
						}
						failing = sourcetest.FailNth(g.blob, nth, nil)
						return failing
					})
					failed := g.workload(t)
					fired = fills.Load() >= nth || failing != nil && failing.Fired()
					if failed > 0 && !fired {
						t.Errorf("%d errors without a cause", failed)
					}
					if n := g.workload(t); n > 0 {
						t.Errorf("operation %d failed once, and %d fail afterwards", nth, n)
					}
					g.cache.check(t)
					if !g.object.Complete() {
						t.Error("not complete")
					}
					g.settled(t)
					if t.Failed() {
						return
					}
				}
			})
		}
	}
}

func TestFiveThousandFills(t *testing.T) {
	const size = 128 * mib
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	g := newRig(t, size, func(g *rig, o *Options) { g.blob.free, o.Conns = true, 4 })
	var wg sync.WaitGroup
	for range 5000 {
		r := ondemand.Range{Off: rnd.Int64N(size/4096) * 4096, Len: 4 * kib}
		wg.Go(func() {
			if err := g.Fill(t.Context(), testID, r); err != nil {
				t.Error(err)
			} else if err := g.readBack(r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if peak := g.object.group.slots.peak; peak > 4 {
		t.Errorf("%d requests at once", peak)
	}
	g.settled(t)
}

func TestRemoveDuringFills(t *testing.T) {
	const size = 24 * mib
	g := newRig(t, size, func(g *rig, o *Options) { g.blob.free, o.Conns = true, 3 })
	var removed atomic.Bool
	g.cache.onFill = func(ondemand.Range) error {
		if removed.Load() {
			t.Error("the cache is written after Remove")
		}
		return nil
	}
	for round := range int64(10) {
		var wg sync.WaitGroup
		for i := range int64(40) {
			wg.Go(func() {
				r := ondemand.Range{Off: i * mib / 2, Len: 256 * kib}
				err := g.Fill(t.Context(), testID, r)
				if err == nil || errors.Is(err, ondemand.ErrDetached) {
					return
				}
				t.Error(err)
			})
		}
		wg.Go(func() {
			if err := g.Hydrate(t.Context(), testID, nil); err != nil && !errors.Is(err, ondemand.ErrDetached) {
				t.Error(err)
			}
		})
		if round%2 == 0 {
			wg.Wait()
		}
		g.Remove(testID)
		removed.Store(true)
		wg.Wait()
		g.cache.Clear(ondemand.Range{Len: size})
		removed.Store(false)
		if _, err := g.Add(g.cache, g.blob); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHasTakesNoLockAndMakesNoGarbage(t *testing.T) {
	g := newRig(t, 64*mib, func(g *rig, _ *Options) { g.blob.free = true })
	for off := int64(0); off < 4*mib; off += 128 * kib {
		r := ondemand.Range{Off: off, Len: 128 * kib}
		if !g.object.Has(r) {
			if err := g.Fill(t.Context(), testID, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.object.mu.Lock()
	defer g.object.mu.Unlock()
	n := testing.AllocsPerRun(100, func() { g.object.Has(ondemand.Range{Off: 1 * mib, Len: 128 * kib}) })
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}
