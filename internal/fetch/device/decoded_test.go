package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc"
)

// spanned is decoded bytes that come in spans.
type spanned struct {
	source.Blob
	span  int64
	mu    sync.Mutex
	asked [][2]int64
	ready [][2]int64
}

func (s *spanned) Align(off, n int64) (int64, int64) {
	from := off / s.span * s.span
	return from, min((off+n+s.span-1)/s.span*s.span, s.Size()) - from
}

func (s *spanned) Ready(_ context.Context, off, n int64) error {
	s.ready = append(s.ready, [2]int64{off, n})
	return nil
}

func (s *spanned) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, [2]int64{off, n})
	return s.Blob.ReadRange(ctx, off, n)
}

// marked are headers of blocks that each have the file's number and nothing else.
type marked struct {
	n    int
	lies map[int]bool // what lies there is another's
}

func (m *marked) add() []byte {
	m.n++
	return m.header(m.n - 1)
}

func (m *marked) header(file int) []byte {
	return bytes.Repeat([]byte{0x80 | byte(file)}, int(m.Before(file)))
}

func (m *marked) Len() int              { return m.n }
func (m *marked) Before(file int) int64 { return 512 * int64(1+file/2%3) }

func (m *marked) Check(file int, header []byte) error {
	if m.lies[file] || !bytes.Equal(header, m.header(file)) {
		return fmt.Errorf("file %d: %w", file, toc.ErrInvalid)
	}
	return nil
}

// newDecoded makes a layer of files with headers between them, each in pieces of
// at most chunk bytes, and what its device is.
func newDecoded(t testing.TB, chunk, span int64, files ...[]byte) (d *Decoded, layer *spanned, device []byte) {
	t.Helper()
	const packed = 1000 // compressed, whatever is in it
	b := toc.NewBuilder(packed)
	var data []byte
	heads := new(marked)
	for n, content := range files {
		if len(content) > 0 {
			data = append(data, heads.add()...)
		}
		i, err := b.Add(toc.Entry{Name: fmt.Sprintf("file%03d", n), Type: toc.Regular, Size: int64(len(content))})
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < int64(len(content)); off += chunk {
			c := toc.Chunk{Off: off, Len: min(chunk, int64(len(content))-off), BlobLen: packed, Inner: int64(len(data)) + off, Codec: toc.Gzip}
			if err := b.AddChunk(i, c); err != nil {
				t.Fatal(err)
			}
		}
		data = append(data, content...)
		data = append(data, bytes.Repeat([]byte{0xff}, (512-len(data)%512)%512)...)
		device = append(device, content...)
		device = append(device, make([]byte, (toc.BlockSize-len(device)%toc.BlockSize)%toc.BlockSize)...)
	}
	table, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	layer = &spanned{Blob: mem.New(data), span: span}
	if d, err = NewDecoded(layer, table, heads); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, layer, device
}

func TestRangesOfADecodedLayer(t *testing.T) {
	for _, chunk := range []int64{1 << 40, 10_000} {
		for _, span := range []int64{1 << 40, 70_000, 20_000} {
			d, layer, want := newDecoded(t, chunk, span, someFiles()...)
			if d.Size() != int64(len(want)) {
				t.Fatalf("device of %d bytes, want %d", d.Size(), len(want))
			}
			sourcetest.MustRead(t, d, want, 0, d.Size())
			if len(layer.asked) != 1 {
				t.Errorf("%d requests for all, want 1", len(layer.asked))
			}
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 2))
			for range 200 {
				n := 1 + rng.Int64N(min(d.Size(), 100_000))
				off := rng.Int64N(d.Size() - n + 1)
				sourcetest.MustRead(t, d, want, off, n)
				at, m := d.Align(off, n)
				if at > off || at+m < off+n || at < 0 || at+m > d.Size() || at < off && at%toc.BlockSize != 0 {
					t.Fatalf("seed %d: [%d,+%d) aligned is [%d,+%d)", seed, off, n, at, m)
				}
				from, to := d.within(off, off+n)
				wideFrom, wideTo := d.within(at, at+m)
				if from < to {
					if a, k := layer.Align(from, to-from); wideFrom < a || wideTo > a+k {
						t.Fatalf("seed %d: [%d,+%d) aligned is [%d,+%d), of more spans", seed, off, n, at, m)
					}
				}
				sourcetest.MustRead(t, d, want, at, m)
				layer.ready = nil
				if err := d.Ready(t.Context(), off, n); err != nil {
					t.Fatal(err)
				}
				if from < to && (len(layer.ready) != 1 || layer.ready[0] != [2]int64{from, to - from}) {
					t.Fatalf("seed %d: ready for %v, want [%d,%d)", seed, layer.ready, from, to)
				}
			}
		}
	}
}

// A span that is read fills all blocks that have no byte elsewhere.
func TestAlignTakesAllOfASpan(t *testing.T) {
	file := bytes.Repeat([]byte{7}, 100_000)
	d, _, _ := newDecoded(t, 1<<40, 50_000, file, file, file)
	// The second file begins at 512+100_352+512 of the layer, its third span at 150_000.
	begin, inSpan := roundUp(100_000), int64(150_000-(512+100_352+512))
	off, n := d.Align(begin+inSpan+5000, 1)
	if want := begin + roundUp(inSpan); off != want {
		t.Errorf("begins at %d, want %d", off, want)
	}
	if want := begin + (inSpan+50_000)&^(toc.BlockSize-1); off+n != want {
		t.Errorf("ends at %d, want %d", off+n, want)
	}
}

// The end of a file whose header lies in another span is not asked for together with
// other files: that one would have to be read, too.
func TestAlignLeavesOutWhatCostsAnotherSpan(t *testing.T) {
	file := bytes.Repeat([]byte{7}, 100_000)
	d, layer, want := newDecoded(t, 1<<40, 130_000, file, file, file)
	// The second span begins in the second file, whose header lies in the first span.
	third := 2 * roundUp(100_000)
	off, n := d.Align(third+5000, 1)
	if off != third {
		t.Errorf("begins at %d, want %d", off, third)
	}
	sourcetest.MustRead(t, d, want, off, n)
	if len(layer.asked) != 1 {
		t.Errorf("%d requests, want 1", len(layer.asked))
	}
	sourcetest.MustRead(t, d, want, 0, third/2+1000) // reads the header
	if off, _ := d.Align(third+5000, 1); off >= third {
		t.Errorf("begins at %d, not in the file before", off)
	}
}

// A table of contents that does not fit its layer makes no device.
func TestDecodedLies(t *testing.T) {
	entry := func(inner, n int64) toc.Entry {
		return toc.Entry{Name: fmt.Sprint(inner), Type: toc.Regular, Size: n, Chunks: []toc.Chunk{{Len: n, BlobLen: 100, Inner: inner, Codec: toc.Gzip}}}
	}
	apart := entry(0, 10)
	apart.Chunks[0].BlobOff = 5
	for name, entries := range map[string][]toc.Entry{
		"beyond the layer": {entry(995, 10)},
		"overlap":          {entry(100, 10), entry(105, 10)},
		"out of order":     {entry(100, 10), entry(0, 10)},
		"another range":    {apart},
	} {
		layer := mem.New(make([]byte, 1000))
		if _, err := NewDecoded(layer, &toc.TOC{Entries: entries, BlobSize: 100}, none(len(entries))); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	layer, entries := mem.New(make([]byte, 5000)), []toc.Entry{entry(512, 10), entry(2048, 10)}
	for name, h := range map[string]Headers{
		"too few headers": none(1), "too many headers": none(3), "header in what is before": over{2},
	} {
		if _, err := NewDecoded(layer, &toc.TOC{Entries: entries, BlobSize: 100}, h); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// none are headers of no length.
type none int

func (n none) Len() int                { return int(n) }
func (n none) Before(int) int64        { return 0 }
func (n none) Check(int, []byte) error { return nil }

// over are headers that overlap the file before.
type over struct{ none }

func (o over) Before(int) int64 { return 2048 }

func TestDecodedConformance(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		d, _, _ := newDecoded(t, 1<<40, 1<<40, data)
		return cut{d, int64(len(data))}
	})
}
