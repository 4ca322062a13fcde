// Package mem holds blobs that need no input or output: a slice of bytes, and
// a pattern of any size, many TiB included, that is computed where it is read.
package mem

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
)

type blob struct {
	at     io.ReaderAt
	id     source.Identity
	closed atomic.Bool
}

// New returns a blob of data, which must not change any more.
func New(data []byte) source.Blob {
	return &blob{at: bytes.NewReader(data), id: source.Identity{Size: int64(len(data))}}
}

// Pattern returns a blob of size bytes, each a function of seed and its offset:
// the bytes that PatternAt gives.
func Pattern(size int64, seed uint64) source.Blob {
	validator := fmt.Sprintf("pattern %#x", seed)
	return &blob{at: PatternAt(seed), id: source.Identity{Size: size, Validator: validator}}
}

func (b *blob) Size() int64 { return b.id.Size }

// Identity names the pattern; plain bytes in memory have only their size.
func (b *blob) Identity() source.Identity { return b.id }

func (b *blob) Close() error {
	b.closed.Store(true)
	return nil
}

func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, fmt.Errorf("read memory: %w", err)
	}
	if b.closed.Load() {
		return nil, fmt.Errorf("read memory: %w", os.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read memory: %w", err)
	}
	return source.Exact(ctx, io.NopCloser(io.NewSectionReader(b.at, off, n)), n), nil
}

// PatternAt is an endless io.ReaderAt of bytes that look random: the eight
// bytes at each multiple of eight are the little-endian splitmix64 of the seed
// and their index (Steele, Lea, Flood: Fast splittable pseudorandom number
// generators, OOPSLA 2014). No aligned block of it is all zeros, save with a
// chance of 2^-64 for each word.
type PatternAt uint64

// ReadAt fills p with the bytes from off; it never ends and never fails.
func (seed PatternAt) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	if off < 0 {
		return 0, fmt.Errorf("read pattern: negative offset %d", off)
	}
	word := uint64(off) / 8
	if skip := off % 8; skip != 0 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], seed.word(word))
		p = p[copy(p, w[skip:]):]
		word++
	}
	for ; len(p) >= 8; word++ {
		binary.LittleEndian.PutUint64(p, seed.word(word))
		p = p[8:]
	}
	if len(p) > 0 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], seed.word(word))
		copy(p, w[:])
	}
	return n, nil
}

func (seed PatternAt) word(i uint64) uint64 {
	z := uint64(seed) + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
