// Package spans reads the decompressed bytes of a gzip file at random.
//
// An index says where decoding can begin. What lies between one such place and the
// next is a span: it is fetched whole and decoded while it comes, and what it was decoded
// to is given to nobody before its compressed bytes were found to have the digest that
// the index has for them. An index is foreign
// data: one that lies gives errors or, where its digests lie as well, other bytes;
// whoever has an index of somebody else's verifies the index.
package spans

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/zran"
)

// Span is what lies between two places where decoding can begin.
type Span struct {
	// From is where its decoding begins, and From.Out where its data does.
	From zran.Checkpoint
	// End is where its data ends, and the next span's begins.
	End int64
	// InEnd is where its compressed bytes end, which begin at From.Start(). The
	// next span's begin there or with the byte before, which is then of both.
	InEnd int64
	// Digest is the SHA-256 of its compressed bytes.
	Digest [32]byte
}

func (s *Span) compressed() int64 { return s.InEnd - s.From.Start() }

// Index knows the spans of a file. All methods may be called concurrently.
type Index interface {
	// Size of the decompressed data.
	Size() int64
	// Find is the span of the byte at off, 0 <= off < Size. It reads of the index
	// what has not been read yet.
	Find(ctx context.Context, off int64) (Span, error)
	// Known is where the data of the span of the byte at off begins and ends; it
	// reads nothing, and is false where that has not been read yet.
	Known(off int64) (from, end int64, known bool)
	// Close frees what the index holds.
	Close() error
}

// MaxSpan is the largest span that is decoded, by its bytes before and after: they
// are held in memory. Builders make spans of 4 MiB and a block; ErrSpan is what a larger one gives.
const MaxSpan = 32 << 20

// ErrSpan: a span is larger than MaxSpan.
var ErrSpan = errors.New("span too large to be decoded alone")

// Gate bounds the bytes that all blobs hold which have it.
type Gate struct {
	memory *limit.Memory // of readers
	recent recent
}

// NewGate makes a gate that nobody has passed.
func NewGate() *Gate { return &Gate{memory: limit.NewMemory(2 * MaxSpan)} }

// Blob is the decompressed bytes of a file.
type Blob struct {
	file     source.Blob
	index    Index
	gate     *Gate
	closed   atomic.Bool
	decoders sync.Pool // of *zran.Decoder
	edges    edges
}

var (
	_ source.Aligned = (*Blob)(nil)
	_ source.Readied = (*Blob)(nil)
)

// New makes a blob that owns the file and its index.
func New(file source.Blob, index Index, gate *Gate) *Blob {
	return &Blob{file: file, index: index, gate: gate, decoders: sync.Pool{New: func() any { return new(zran.Decoder) }}}
}

// Size implements source.Blob.
func (b *Blob) Size() int64 { return b.index.Size() }

// Identity is the file's.
func (b *Blob) Identity() source.Identity {
	id := source.IdentityOf(b.file)
	id.Size = b.Size()
	return id
}

// Close implements source.Blob.
func (b *Blob) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	b.gate.recent.forget(b)
	return errors.Join(b.file.Close(), b.index.Close())
}

// Ready implements source.Readied: the ends of the range are the ones that matter.
func (b *Blob) Ready(ctx context.Context, off, n int64) error {
	for _, at := range []int64{off, off + n - 1} {
		if _, _, known := b.index.Known(at); known {
			continue
		}
		if _, err := b.index.Find(ctx, at); err != nil {
			return fmt.Errorf("read the index of a layer at %d: %w", at, err)
		}
	}
	return nil
}

// Align implements source.Aligned: a span costs the same however much of it is read.
func (b *Blob) Align(off, n int64) (int64, int64) {
	end := off + n
	if from, _, known := b.index.Known(off); known {
		off = min(off, from)
	}
	if _, to, known := b.index.Known(end - 1); known {
		end = max(end, to)
	}
	off, end = b.edges.widen(off, end)
	return off, end - off
}

// ReadRange implements source.Blob. It makes one request to the file for all spans
// of the range, but those at its ends that are held.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > b.Size()-n {
		return nil, fmt.Errorf("read [%d,+%d) of %d decompressed bytes: %w", off, n, b.Size(), source.ErrRange)
	}
	if b.closed.Load() {
		return nil, fmt.Errorf("read decompressed bytes: %w", os.ErrClosed)
	}
	ctx, refuted := source.WithRefuted(ctx)
	r := &reader{ctx: ctx, refuted: refuted, held: b.gate.memory.Hold(ctx), b: b, off: off, end: off + n}
	r.lead, r.trail = b.known(off, off+n)
	r.off, r.end = r.off+int64(len(r.lead)), r.end-int64(len(r.trail))
	if r.off == r.end {
		return source.Exact(ctx, r, n), nil
	}
	if data, _ := b.gate.recent.get(b, r.off); data != nil {
		return source.Exact(ctx, r, n), nil
	}
	// The request is made here, so that its failure is ReadRange's.
	if err := r.ready(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.isReady = true
	return source.Exact(ctx, r, n), nil
}

// known is what is held of the beginning and the end of [off, end).
func (b *Blob) known(off, end int64) (lead, trail []byte) {
	if _, at, known := b.index.Known(off); known {
		lead = b.edges.lead(off, end, at)
	}
	if at, _, known := b.index.Known(end - 1); known {
		trail = b.edges.trail(off+int64(len(lead)), end, at)
	}
	return lead, trail
}
