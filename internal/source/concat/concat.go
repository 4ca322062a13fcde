// Package concat makes one blob of many: each of them, a part, has its place in it,
// and between them are zeros.
//
// A part whose digest is known and that is not large is read whole, and verified
// before a byte of it is handed on. What fails is a part, never the blob: an error
// is a *PartError, and that the source of one part has changed is no
// source.ErrChanged of the whole.
package concat

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
)

// MaxWhole is the size of the largest part that is read whole where its digest is
// known: what one read of a byte of it costs, and the memory that it takes.
const MaxWhole = 1 << 20

// ErrDigest: a part does not have its digest.
var ErrDigest = errors.New("not the expected sha256 digest")

// Part is a blob in its place.
type Part struct {
	// Off is where its first byte lies, Size how many it has.
	Off, Size int64
	// Digest of all of it, where HasDigest.
	Digest    [sha256.Size]byte
	HasDigest bool
}

// End is the offset behind the part.
func (p *Part) End() int64 { return p.Off + p.Size }

// Whole tells whether the part is read whole and verified before it is handed on.
func (p *Part) Whole() bool { return p.HasDigest && p.Size <= MaxWhole }

// PartError is what one part fails with.
type PartError struct {
	// Part is its index, Name what Options call it.
	Part int
	Name string
	// Err is what went wrong.
	Err error
}

// Error names the part.
func (e *PartError) Error() string { return e.Name + ": " + e.Err.Error() }

// Unwrap is the error, unless it would say something of the whole blob.
func (e *PartError) Unwrap() error {
	if errors.Is(e.Err, source.ErrChanged) {
		return nil
	}
	return e.Err
}

// Options make a Blob.
type Options struct {
	// Size of the whole.
	Size int64
	// Parts in the order of their places; they do not overlap, lie in the whole,
	// and none is empty.
	Parts []Part
	// Open returns the blob of a part, which stays the caller's. It is called
	// for each reading of a part, possibly concurrently, and asks nothing.
	Open func(part int) (source.Blob, error)
	// Name is what messages call a part; nil: its number.
	Name func(part int) string
	// Tell, if not nil, is told how each reading of a part ended: nil where it
	// gave its bytes. Readings that were cancelled are not told.
	Tell func(part int, err error)
	// Close, if not nil, is called by the first Close.
	Close func() error
}

// Blob is the whole.
type Blob struct {
	o      Options
	closed atomic.Bool
}

var (
	_ source.Aligned = (*Blob)(nil)
	_ source.Parted  = (*Blob)(nil)
)

// New makes a blob of parts.
func New(o Options) (*Blob, error) {
	end := int64(0)
	for i, p := range o.Parts {
		if p.Off < end || p.Size <= 0 || p.Size > o.Size-p.Off {
			return nil, fmt.Errorf("join parts: part %d at [%d,+%d) of %d bytes", i, p.Off, p.Size, o.Size)
		}
		end = p.End()
	}
	if o.Name == nil {
		o.Name = func(part int) string { return fmt.Sprintf("part %d", part) }
	}
	if o.Tell == nil {
		o.Tell = func(int, error) {}
	}
	return &Blob{o: o}, nil
}

// Size is the size of the whole.
func (b *Blob) Size() int64 { return b.o.Size }

// find is the first part that ends behind off.
func (b *Blob) find(off int64) int {
	i, _ := slices.BinarySearchFunc(b.o.Parts, off, func(p Part, off int64) int {
		if p.End() <= off {
			return -1
		}
		return 1
	})
	return i
}

// Parts are the indices [first, last) of the parts that have a byte in [off, off+n).
func (b *Blob) Parts(off, n int64) (first, last int) {
	first = b.find(off)
	for last = first; last < len(b.o.Parts) && b.o.Parts[last].Off < off+n; last++ {
	}
	return first, last
}

// Part is the place of the part at off, with the zeros behind it, and before the first.
func (b *Blob) Part(off int64) (from, n int64) {
	i := b.find(off)
	if i > 0 && (i == len(b.o.Parts) || b.o.Parts[i].Off > off) {
		i-- // the zeros behind that part
	}
	end := b.o.Size
	if i+1 < len(b.o.Parts) {
		end = b.o.Parts[i+1].Off
	}
	if i > 0 {
		from = b.o.Parts[i].Off
	}
	return from, end - from
}

// Align is [off, off+n) widened to the whole of parts that are read whole anyway.
func (b *Blob) Align(off, n int64) (int64, int64) {
	end := off + n
	first, last := b.Parts(off, n)
	for _, p := range b.o.Parts[first:last] {
		if p.Whole() {
			off, end = min(off, p.Off), max(end, p.End())
		}
	}
	return off, end - off
}

// Close implements source.Blob.
func (b *Blob) Close() error {
	if b.closed.Swap(true) || b.o.Close == nil {
		return nil
	}
	return b.o.Close()
}

// ReadRange implements source.Blob. It asks for the first part; the others are
// asked for when the reader gets there.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, fmt.Errorf("read parts: %w", err)
	}
	if b.closed.Load() {
		return nil, fmt.Errorf("read parts: %w", os.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read parts: %w", err)
	}
	r := &reader{ctx: ctx, b: b, off: off, end: off + n, next: b.find(off)}
	if p, ok := r.part(); ok && p.Off <= off {
		if err := r.request(p); err != nil {
			return nil, err
		}
	}
	return r, nil
}
