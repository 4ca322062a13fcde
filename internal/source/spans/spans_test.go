package spans

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/zran"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// table is an index in memory that is read span by span.
type table struct {
	size  int64
	spans []Span

	mu    sync.Mutex
	known map[int]bool
	err   error // what Find gives
}

func (x *table) at(off int64) int {
	i, _ := slices.BinarySearchFunc(x.spans, off, func(s Span, off int64) int {
		if s.End <= off {
			return -1
		}
		return 1
	})
	return i
}

func (x *table) Size() int64  { return x.size }
func (x *table) Close() error { return nil }

func (x *table) Find(_ context.Context, off int64) (Span, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		return Span{}, x.err
	}
	i := x.at(off)
	x.known[i] = true
	return x.spans[i], nil
}

func (x *table) Known(off int64) (from, end int64, known bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := x.at(off)
	return x.spans[i].From.Out, x.spans[i].End, x.known[i]
}

// text is n bytes that compress a little.
func text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	var b bytes.Buffer
	for b.Len() < n {
		if rng.IntN(500) == 0 {
			b.Write(sourcetest.Bytes(1 + rng.IntN(40_000))) // stored blocks
		}
		fmt.Fprintf(&b, "%d %x\n", rng.IntN(1000), rng.IntN(1<<30))
	}
	return b.Bytes()[:n]
}

// pack is data in gzip members, empty ones among them.
func pack(t testing.TB, data []byte, members int) []byte {
	t.Helper()
	var b bytes.Buffer
	each := len(data)/members + 1
	for m := range members {
		for _, part := range [][]byte{data[min(m*each, len(data)):min((m+1)*each, len(data))], nil} {
			w := gzip.NewWriter(&b)
			_, err := w.Write(part)
			if err = errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b.Bytes()
}

func indexOf(t testing.TB, file []byte, size int64) *table {
	t.Helper()
	x := &table{known: make(map[int]bool)}
	var points []zran.Checkpoint
	total, err := zran.Build(bytes.NewReader(file), size, nil, func(c zran.Checkpoint) error {
		points = append(points, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	x.size = total.Decompressed
	for i, c := range points {
		s := Span{From: c, End: x.size, InEnd: int64(len(file))}
		if i+1 < len(points) {
			s.End, s.InEnd = points[i+1].Out, points[i+1].In
		}
		s.Digest = sha256.Sum256(file[c.Start():s.InEnd])
		x.spans = append(x.spans, s)
	}
	return x
}

func open(t testing.TB, data []byte, spanSize int64, members int) (*Blob, *table, *counted) {
	t.Helper()
	file := pack(t, data, members)
	x := indexOf(t, file, spanSize)
	c := &counted{Blob: mem.New(file)}
	b := New(c, x, NewGate())
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, x, c
}

// counted counts the requests to a file.
type counted struct {
	source.Blob
	mu    sync.Mutex
	asked [][2]int64
}

func (c *counted) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, [2]int64{off, n})
	return c.Blob.ReadRange(ctx, off, n)
}

func TestBlob(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		file := pack(t, data, 3)
		return New(mem.New(file), indexOf(t, file, 10_000), NewGate())
	})
}

func TestRanges(t *testing.T) {
	for _, members := range []int{1, 5} {
		data := text(1<<20, 7)
		b, x, c := open(t, data, 50_000, members)
		if len(x.spans) < 5 {
			t.Fatalf("%d spans", len(x.spans))
		}
		sourcetest.MustRead(t, b, data, 0, b.Size())
		if len(c.asked) != 1 {
			t.Errorf("%d requests for all, want 1", len(c.asked))
		}
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		var wg sync.WaitGroup
		for range 8 {
			ranges := make([][2]int64, 50)
			for i := range ranges {
				n := 1 + rng.Int64N(200_000)
				ranges[i] = [2]int64{rng.Int64N(b.Size() - n + 1), n}
			}
			wg.Go(func() {
				for _, r := range ranges {
					got, err := sourcetest.Read(t.Context(), b, r[0], r[1])
					if err != nil || !bytes.Equal(got, data[r[0]:r[0]+r[1]]) {
						t.Errorf("seed %d: %v: %v", seed, r, err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// A range is widened to spans once the index is known, and not before.
func TestAlign(t *testing.T) {
	data := text(1<<20, 8)
	b, x, _ := open(t, data, 50_000, 2)
	off, end := x.spans[1].From.Out+10, x.spans[3].From.Out+10
	if at, n := b.Align(off, end-off); at != off || n != end-off {
		t.Errorf("[%d,+%d) of an index that was not read", at, n)
	}
	if err := b.Ready(t.Context(), off, end-off); err != nil {
		t.Fatal(err)
	}
	at, n := b.Align(off, end-off)
	if at != x.spans[1].From.Out || at+n != x.spans[3].End {
		t.Errorf("[%d,%d) became [%d,%d)", off, end, at, at+n)
	}
	x.err = source.ErrUnreachable
	if err := b.Ready(t.Context(), off, end-off); err != nil {
		t.Errorf("what is known was asked for again: %v", err)
	}
	if err := b.Ready(t.Context(), b.Size()-1, 1); !errors.Is(err, source.ErrUnreachable) {
		t.Errorf("without the index: %v", err)
	}
}

// No index and no file that do not fit each other give a byte.
func TestLies(t *testing.T) {
	data := text(1<<20, 9)
	at := func(n int, change func(*Span)) func(*table, []byte) {
		return func(x *table, _ []byte) { change(&x.spans[n]) }
	}
	for name, lie := range map[string]func(*table, []byte){
		"a byte of the file":    func(x *table, file []byte) { file[x.spans[1].From.In+500] ^= 1 },
		"digest":                at(1, func(s *Span) { s.Digest[0] ^= 1 }),
		"begins earlier":        at(1, func(s *Span) { s.From.In-- }),
		"begins later":          at(1, func(s *Span) { s.From.In++ }),
		"begins before all":     at(1, func(s *Span) { s.From.In = -1 }),
		"ends later":            at(1, func(s *Span) { s.InEnd++ }),
		"ends behind all":       at(1, func(s *Span) { s.InEnd = 1 << 40 }),
		"ends before it begins": at(1, func(s *Span) { s.InEnd = 0 }),
		"another place":         at(1, func(s *Span) { s.From.Out += 5000 }),
		"negative place":        at(1, func(s *Span) { s.From.Out = -1 << 62 }),
		"no data":               at(1, func(s *Span) { s.End = s.From.Out }),
		"data behind all":       at(1, func(s *Span) { s.End = 1 << 50 }),
		"nine bits":             at(1, func(s *Span) { s.From.Bits = 9 }),
	} {
		t.Run(name, func(t *testing.T) {
			file := pack(t, data, 1)
			x := indexOf(t, file, 50_000)
			off, n := x.spans[1].From.Out+100, int64(1000)
			lie(x, file)
			b := New(mem.New(file), x, NewGate())
			defer b.Close()
			got, err := sourcetest.Read(t.Context(), b, off, n)
			if err == nil && !bytes.Equal(got, data[off:off+n]) {
				t.Fatal("wrong bytes")
			}
			if err == nil {
				t.Fatal("nobody noticed")
			}
			wantFree(t, b.gate)
		})
	}
}

// Spans that are too large are refused before anything is held.
func TestLargeSpan(t *testing.T) {
	data := make([]byte, MaxSpan+1)
	file := pack(t, data, 1)
	x := indexOf(t, file, MaxSpan*2)
	b := New(mem.New(file), x, NewGate())
	defer b.Close()
	if _, err := sourcetest.Read(t.Context(), b, 0, 1); !errors.Is(err, ErrSpan) {
		t.Errorf("read: %v", err)
	}
}

// More readers than memory: all get theirs.
func TestGate(t *testing.T) {
	data := text(1<<20, 11)
	file := pack(t, data, 1)
	x := indexOf(t, file, 100_000)
	gate := NewGate()
	others := gate.memory.Hold(t.Context())
	if err := others.Take(2*MaxSpan - 400_000); err != nil {
		t.Fatal(err)
	}
	b := New(mem.New(file), x, gate)
	defer b.Close()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			got, err := sourcetest.Read(t.Context(), b, 1000, 500_000)
			if err != nil || !bytes.Equal(got, data[1000:501_000]) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	others.Close()
	wantFree(t, gate)
}

// Readers whose requests break ask again while others wait for memory, and nobody waits
// in a circle: here for two places, where memory has room for two spans.
func TestBrokenRequestsAndTheGate(t *testing.T) {
	data := text(400_000, 12)
	file := pack(t, data, 1)
	x := indexOf(t, file, 100_000)
	synctest.Test(t, func(t *testing.T) {
		f := sourcetest.Break(mem.New(file), 2)
		b := New(retry.Wrap(limit.NewGroup(2).Demand(f), retry.Policy{}), x, &Gate{memory: limit.NewMemory(300_000)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var readers sync.WaitGroup
		for _, s := range x.spans[:4] {
			readers.Go(func() {
				off := s.End - 20
				got, err := sourcetest.Read(ctx, b, off, 10)
				if err != nil || !bytes.Equal(got, data[off:off+10]) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		f.Release()
		readers.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// wantFree wants nothing to be held of a gate.
func wantFree(t *testing.T, g *Gate) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	h := g.memory.Hold(ctx)
	defer h.Close()
	if err := h.Take(2 * MaxSpan); err != nil {
		t.Errorf("something is held for ever: %v", err)
	}
}
