// Package device makes of a layer the device that EROFS reads the layer's files
// from: their data, decompressed and verified, each file at a block of its own,
// in the order of the layer's table of contents. Between the end of a file and
// the next block, and in the holes of sparse files, a device is zeros.
//
// The layout is a function of the table of contents alone, so the same layer has
// the same device everywhere and for ever; Version changes when that function
// does.
package device

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Version of the layout. It is part of the name of a device's object.
const Version = 1

// MaxChunk is the largest chunk that is decoded: its bytes are held in memory
// until their digest is known. Builders make chunks of up to 4 MiB, or 10 on request.
const MaxChunk = 16 << 20

// ErrChunk: a chunk is larger than MaxChunk. The layer can be read whole.
var ErrChunk = errors.New("chunk too large to be fetched alone")

// gateBytes is what a gate lets through: it is at least MaxChunk, so that every
// chunk gets its turn.
const gateBytes = 64 << 20

// Gate bounds the bytes of chunks that all devices hold which have it, however many
// are read at once: a table of contents says little and asks for much.
type Gate = limit.Memory

// NewGate makes a gate that nobody has passed.
func NewGate() *Gate { return limit.NewMemory(gateBytes) }

// part is a chunk at its place in the device.
type part struct {
	off, len         int64 // in the device
	blobOff, blobLen int64
	inner            int64
	codec            toc.Codec
	hasDigest        bool
	digest           [32]byte
}

func (p *part) end() int64 { return p.off + p.len }

// Blob is a layer's device as a source.Blob. Every chunk that has a digest is
// verified before any byte of it is returned.
type Blob struct {
	layer    source.Blob
	gate     *Gate
	size     int64
	parts    []part // by off
	verified bool
	closed   atomic.Bool
	decoders toc.Decoders
}

var _ source.Aligned = (*Blob)(nil)

// New makes the device of the layer that t is the valid table of contents of. It
// owns layer. Its chunks pass the gate.
func New(layer source.Blob, t *toc.TOC, gate *Gate) (*Blob, error) {
	if layer.Size() != t.BlobSize {
		return nil, fmt.Errorf("make device: the layer has %d bytes, its table of contents says %d", layer.Size(), t.BlobSize)
	}
	b := &Blob{layer: layer, gate: gate, size: t.DeviceSize(), verified: true}
	places := t.Places()
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.HoldsPlace() {
			continue
		}
		for _, c := range e.Chunks {
			p, err := newPart(places[i], c)
			if err != nil {
				return nil, fmt.Errorf("make device: %q: %w", e.Name, err)
			}
			b.verified = b.verified && p.hasDigest
			b.parts = append(b.parts, p)
		}
	}
	return b, nil
}

// Parts is what t says of the bytes of its layer's device: the chunks with their
// digests, in order. What lies between them is zeros.
func Parts(t *toc.TOC) ([]cache.Part, error) {
	var parts []cache.Part
	places := t.Places()
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.HoldsPlace() {
			continue
		}
		for _, c := range e.Chunks {
			p, err := newPart(places[i], c)
			if err != nil {
				return nil, fmt.Errorf("read digests: %q: %w", e.Name, err)
			}
			known := cache.Part{Off: p.off, Len: p.len}
			if p.hasDigest {
				digest := p.digest
				known.Digest = &digest
			}
			parts = append(parts, known)
		}
	}
	return parts, nil
}

func newPart(place int64, c toc.Chunk) (part, error) {
	p := part{off: place + c.Off, len: c.Len, blobOff: c.BlobOff, blobLen: c.BlobLen, inner: c.Inner, codec: c.Codec}
	if c.Len > MaxChunk {
		return p, fmt.Errorf("chunk of %d bytes, at most %d are decoded: %w: %w", c.Len, MaxChunk, ErrChunk, toc.ErrLimit)
	}
	if c.Digest == "" {
		return p, nil
	}
	p.hasDigest = true
	digits, found := strings.CutPrefix(c.Digest, "sha256:")
	if n, err := hex.Decode(p.digest[:], []byte(digits)); !found || err != nil || n != len(p.digest) {
		return p, fmt.Errorf("chunk digest %q: %w", c.Digest, toc.ErrInvalid)
	}
	return p, nil
}

// Size is the device's size, a multiple of the block size.
func (b *Blob) Size() int64 { return b.size }

// Verified tells whether every chunk has a digest.
func (b *Blob) Verified() bool { return b.verified }

// Identity is the layer's: a device never changes unless its layer does.
func (b *Blob) Identity() source.Identity {
	id := source.IdentityOf(b.layer)
	id.Size = b.size
	return id
}

// Close closes the layer.
func (b *Blob) Close() error {
	b.closed.Store(true)
	return b.layer.Close()
}

// Align is [off, off+n) widened to whole chunks: less costs as much.
func (b *Blob) Align(off, n int64) (int64, int64) {
	end := off + n
	if i := b.find(off); i < len(b.parts) && b.parts[i].off < off {
		off = b.parts[i].off
	}
	if i := b.find(end - 1); i < len(b.parts) && b.parts[i].off < end {
		end = max(end, b.parts[i].end())
	}
	return off, end - off
}

// find is the first part that ends behind off.
func (b *Blob) find(off int64) int {
	i, _ := slices.BinarySearchFunc(b.parts, off, func(p part, off int64) int {
		if p.end() <= off {
			return -1
		}
		return 1
	})
	return i
}

// ReadRange implements source.Blob. It makes one request to the layer where the
// chunks of the range lie together there, as they do where tables of contents
// are in the blob's order, and none before the first chunk is reached. A reader
// holds one chunk at most, and waits for no other while it does.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > b.size-n {
		return nil, fmt.Errorf("read [%d,+%d) of a device of %d bytes: %w", off, n, b.size, source.ErrRange)
	}
	if b.closed.Load() {
		return nil, fmt.Errorf("read device: %w", os.ErrClosed)
	}
	ctx, refuted := source.WithRefuted(ctx)
	r := &reader{ctx: ctx, refuted: refuted, held: b.gate.Hold(ctx), b: b, off: off, end: off + n, next: b.find(off)}
	// The request is made here, so that its failure is ReadRange's. Zeros that come
	// first are there without it.
	if r.next < len(b.parts) && b.parts[r.next].off <= off {
		if err := r.ready(&b.parts[r.next]); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.isReady = true
	}
	return source.Exact(ctx, r, n), nil
}

// span is the range of the layer that one request fetches for the parts from
// next on that begin before end: those whose compressed ranges follow each other.
func (b *Blob) span(next int, end int64) (off, to int64) {
	p := &b.parts[next]
	off, to = p.blobOff, p.blobOff+p.blobLen
	for i := next + 1; i < len(b.parts) && b.parts[i].off < end; i++ {
		p := &b.parts[i]
		if p.blobOff+p.blobLen == to && p.blobOff >= off {
			continue // of the range before
		}
		if p.blobOff < to || p.blobOff-to > joinGap {
			break
		}
		to = p.blobOff + p.blobLen
	}
	return off, to
}

// joinGap is how much that nobody asked for lies in one request at most.
const joinGap = 64 << 10

var errShort = errors.New("chunk is shorter than the table of contents says")
