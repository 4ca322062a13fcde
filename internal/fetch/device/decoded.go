package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// place is a range of a file: where it lies in the device, and in the decoded bytes.
type place struct{ off, len, at int64 }

func (p *place) end() int64 { return p.off + p.len }

// Decoded is the device of a layer that is one compressed range and can be decoded
// anywhere. What is read of it is verified before it gets here, so no more is held
// than what is asked for, and chunks may have any length.
type Decoded struct {
	layer  source.Blob // its decoded bytes
	size   int64
	places []place // by off, and by at
	closed atomic.Bool
}

var (
	_ source.Aligned = (*Decoded)(nil)
	_ source.Readied = (*Decoded)(nil)
)

// NewDecoded makes the device of the layer that t is the valid table of contents
// of; layer is its decoded bytes, which it owns.
func NewDecoded(layer source.Blob, t *toc.TOC) (*Decoded, error) {
	d := &Decoded{layer: layer, size: t.DeviceSize()}
	places := t.Places()
	end := int64(0)
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.HoldsPlace() {
			continue
		}
		for _, c := range e.Chunks {
			if c.BlobOff != 0 || c.BlobLen != t.BlobSize || c.Inner < end || c.Inner > layer.Size()-c.Len {
				return nil, fmt.Errorf("make device: %q: %d bytes at %d of %d, behind those at %d: %w", e.Name, c.Len, c.Inner, layer.Size(), end, toc.ErrInvalid)
			}
			end = c.Inner + c.Len
			d.places = append(d.places, place{off: places[i] + c.Off, len: c.Len, at: c.Inner})
		}
	}
	return d, nil
}

// Size is the device's size, a multiple of the block size.
func (d *Decoded) Size() int64 { return d.size }

// Identity is the layer's: a device never changes unless its layer does.
func (d *Decoded) Identity() source.Identity {
	id := source.IdentityOf(d.layer)
	id.Size = d.size
	return id
}

// Close closes the layer.
func (d *Decoded) Close() error {
	d.closed.Store(true)
	return d.layer.Close()
}

// find is the first place that ends behind off.
func (d *Decoded) find(off int64) int {
	i, _ := slices.BinarySearchFunc(d.places, off, func(p place, off int64) int {
		if p.end() <= off {
			return -1
		}
		return 1
	})
	return i
}

// within is the range of the layer that [off, end) of the device needs: nothing
// where from is not less than to.
func (d *Decoded) within(off, end int64) (from, to int64) {
	first, behind := d.find(off), d.find(end-1)
	if behind < len(d.places) && d.places[behind].off < end {
		behind++
	}
	if first >= behind {
		return 0, 0
	}
	p, q := &d.places[first], &d.places[behind-1]
	return p.at + max(0, off-p.off), q.at + min(q.len, end-q.off)
}

// Ready implements source.Readied.
func (d *Decoded) Ready(ctx context.Context, off, n int64) error {
	if from, to := d.within(off, off+n); from < to {
		return source.Ready(ctx, d.layer, from, to-from)
	}
	return nil
}

// Align is [off, off+n) with the whole blocks around it that cost no more. A block
// of which the layer has a part elsewhere is not among them.
func (d *Decoded) Align(off, n int64) (int64, int64) {
	end := off + n
	from, to := d.within(off, end)
	if from >= to {
		return off, n
	}
	from, n = source.Align(d.layer, from, to-from)
	to = from + n
	behindAt := func(at int64) int { // the first place that has a byte at or behind at
		i, _ := slices.BinarySearchFunc(d.places, at, func(p place, at int64) int {
			if p.at+p.len <= at {
				return -1
			}
			return 1
		})
		return i
	}
	if i := behindAt(from); i < len(d.places) {
		p := &d.places[i]
		off = min(off, roundUp(p.off+max(0, from-p.at)))
	}
	i := behindAt(to)
	if i < len(d.places) && d.places[i].at < to {
		return off, max(end, (d.places[i].off+to-d.places[i].at)&^(toc.BlockSize-1)) - off
	}
	if i > 0 {
		// The file ends, or goes on behind a hole, with a block that is all there.
		last := roundUp(d.places[i-1].end())
		if i < len(d.places) && d.places[i].off < last {
			last -= toc.BlockSize
		}
		end = max(end, last)
	}
	return off, end - off
}

func roundUp(off int64) int64 { return (off + toc.BlockSize - 1) &^ (toc.BlockSize - 1) }

// ReadRange implements source.Blob. It makes one request to the layer where the
// files of the range lie together there, as those of a tar do.
func (d *Decoded) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > d.size-n {
		return nil, fmt.Errorf("read [%d,+%d) of a device of %d bytes: %w", off, n, d.size, source.ErrRange)
	}
	if d.closed.Load() {
		return nil, fmt.Errorf("read device: %w", os.ErrClosed)
	}
	r := &decodedReader{ctx: ctx, d: d, off: off, end: off + n, next: d.find(off)}
	// The request is made here, so that its failure is ReadRange's.
	if r.next < len(d.places) && d.places[r.next].off <= off {
		if err := r.request(); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return source.Exact(ctx, r, n), nil
}

// decodedReader reads a range of a Decoded. Read and Close may be called at once.
type decodedReader struct {
	ctx      context.Context
	d        *Decoded
	off, end int64 // in the device, still to come
	next     int   // the place at off, or the next one
	at, to   int64 // what of the layer body has still to give

	mu     sync.Mutex
	body   io.ReadCloser
	closed bool
}

// Read implements io.Reader.
func (r *decodedReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.end-r.off)]
	zeros := r.end
	if r.next < len(r.d.places) {
		zeros = min(zeros, r.d.places[r.next].off)
	}
	if r.off < zeros {
		n := min(int64(len(p)), zeros-r.off)
		clear(p[:n])
		r.off += n
		return int(n), nil
	}
	n, err := r.read(p)
	if r.off += int64(n); r.off == r.d.places[r.next].end() {
		r.next++
	}
	if err != nil {
		return n, fmt.Errorf("read device at %d: %w", r.off, err)
	}
	return n, nil
}

// read reads of the place at off.
func (r *decodedReader) read(p []byte) (int, error) {
	place := &r.d.places[r.next]
	want := place.at + r.off - place.off
	if r.body == nil || want < r.at || want >= r.to || want-r.at > maxSkip {
		if err := r.request(); err != nil {
			return 0, err
		}
	}
	skipped, err := io.CopyN(io.Discard, r.body, want-r.at)
	r.at += skipped
	if err != nil {
		return 0, early(err)
	}
	n, err := r.body.Read(p[:min(int64(len(p)), place.end()-r.off)])
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, early(err)
}

// maxSkip is how much that is not of the device is read rather than asked around.
const maxSkip = 1 << 20

// early is the error of a body that ends before what it was asked for.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// request asks the layer for all that the rest of the range needs.
func (r *decodedReader) request() error {
	r.mu.Lock()
	body, closed := r.body, r.closed
	r.body = nil
	r.mu.Unlock()
	if body != nil {
		if err := body.Close(); err != nil {
			return err
		}
	}
	if closed {
		return errClosed
	}
	from, to := r.d.within(r.off, r.end)
	body, err := r.d.layer.ReadRange(r.ctx, from, to-from)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(errClosed, body.Close())
	}
	r.body, r.at, r.to = body, from, to
	return nil
}

// Close implements io.Closer. A Read that waits for the layer ends with an error.
func (r *decodedReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
