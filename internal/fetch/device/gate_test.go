package device

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// gateFor is a device of chunks of 10000 bytes whose gate lets through n bytes.
func gateFor(t *testing.T, n int64) (*Blob, *sample) {
	t.Helper()
	s := newSample(t, layout{codec: toc.Gzip, chunk: 10_000, shared: 1}, false, toctest.Random(1, 50_000))
	d, err := New(mem.New(s.blob), s.toc, limit.NewMemory(n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wantFree(t, d.gate, n)
	})
	return d, s
}

// wantFree wants nothing to be held of a gate that lets through n bytes.
func wantFree(t *testing.T, g *Gate, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	h := g.Hold(ctx)
	defer h.Close()
	if err := h.Take(n); err != nil {
		t.Errorf("something is held for ever: %v", err)
	}
}

// begun is a reader that holds the first chunk.
func begun(t *testing.T, ctx context.Context, d *Blob) io.ReadCloser {
	t.Helper()
	r, err := d.ReadRange(ctx, 0, d.Size())
	if err == nil {
		_, err = io.ReadFull(r, make([]byte, 100))
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReadersShareTheGate(t *testing.T) {
	d, s := gateFor(t, 10_000)
	first := begun(t, t.Context(), d)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := sourcetest.Read(ctx, d, 0, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second chunk in memory: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, d, s.device, 0, d.Size())
	sourcetest.MustRead(t, d, s.device, 100, 100) // which ends inside a chunk
	sourcetest.MustRead(t, d, s.device, 0, d.Size())
}

// Many at once go on where one chunk at a time has room.
func TestGateLetsEverybodyThrough(t *testing.T) {
	d, s := gateFor(t, 15_000)
	done := make(chan error)
	for range 8 {
		go func() {
			got, err := sourcetest.Read(t.Context(), d, 0, d.Size())
			if err == nil && string(got) != string(s.device) {
				err = errors.New("wrong bytes")
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestCloseEndsTheWaitForTheGate(t *testing.T) {
	d, _ := gateFor(t, 20_000)
	first, second := begun(t, t.Context(), d), begun(t, t.Context(), d)
	others := d.gate.Hold(t.Context()) // before second in the queue, and behind first
	took := make(chan error)
	go func() { took <- others.Take(20_000) }()
	done := make(chan error)
	go func() {
		_, err := io.ReadAll(second)
		done <- err
	}()
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a closed reader reads to its end")
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := <-took; err != nil {
		t.Error(err)
	}
	others.Close()
}

// Readers whose requests break ask again while others wait for memory, and nobody waits
// in a circle, though there is memory and room for two only.
func TestBrokenRequestsAndTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(t, layout{codec: toc.Stored, chunk: 10_000, shared: 1}, false, toctest.Random(1, 50_000))
		layer := sourcetest.Break(mem.New(s.blob), 2)
		d, err := New(retry.Wrap(limit.NewGroup(2).Demand(layer), retry.Policy{}), s.toc, limit.NewMemory(20_000))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var readers sync.WaitGroup
		for n := range int64(4) {
			readers.Go(func() {
				got, err := sourcetest.Read(ctx, d, n*10_000, 15_000)
				if err != nil || string(got) != string(s.device[n*10_000:][:15_000]) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		layer.Release()
		readers.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A chunk that is wrong is given up with the error.
func TestFailedChunkLeavesTheGate(t *testing.T) {
	s := newSample(t, layout{codec: toc.Stored, chunk: 10_000, shared: 1}, false, toctest.Random(1, 30_000))
	s.blob[15_000] ^= 1
	gate := limit.NewMemory(10_000)
	d, err := New(mem.New(s.blob), s.toc, gate)
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.ReadRange(t.Context(), 10_000, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, source.ErrNotBytes) {
		t.Errorf("got %v", err)
	}
	wantFree(t, gate, 10_000)
	if err := errors.Join(r.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

// Holes need no layer.
func TestZerosMakeNoRequest(t *testing.T) {
	s := newSample(t, layout{codec: toc.Gzip, chunk: 1 << 20, shared: 1}, true, toctest.Random(1, 3<<20))
	layer := &toctest.Blob{Bytes: s.blob}
	d := open(t, s, toctestSource{layer})
	sourcetest.MustRead(t, d, s.device, 1<<20, 1<<20)
	r, err := d.ReadRange(t.Context(), 1<<20, 2<<20)
	if err == nil {
		_, err = io.ReadFull(r, make([]byte, 1<<20))
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := layer.Requests.Load(); n != 0 {
		t.Errorf("%d requests for zeros", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
