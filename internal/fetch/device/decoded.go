package device

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// place is a range of a file: where it lies in the device, and in the decoded bytes.
type place struct {
	off, len, at int64
	file         int // counts those that have a place
}

func (p *place) end() int64 { return p.off + p.len }

// Decoded is the device of a layer that is one compressed range and can be decoded
// anywhere. What is read of it is verified before it gets here, so no more is held
// than what is asked for, and chunks may have any length. That the bytes of a file are
// its own is known by its header: no byte is returned of a file whose header was not
// found right before its data.
type Decoded struct {
	layer   source.Blob // its decoded bytes
	size    int64
	places  []place // by off, by at, and by file
	headers *headers
	closed  atomic.Bool
}

var (
	_ source.Aligned = (*Decoded)(nil)
	_ source.Parted  = (*Decoded)(nil)
	_ source.Readied = (*Decoded)(nil)
)

// NewDecoded makes the device of the layer that t is the valid table of contents
// of, whose headers h knows; layer is its decoded bytes, which it owns.
func NewDecoded(layer source.Blob, t *toc.TOC, h Headers) (*Decoded, error) {
	d := &Decoded{layer: layer, size: t.DeviceSize(), headers: newHeaders(h)}
	places := t.Places()
	end, file := int64(0), -1
	for i := range t.Entries {
		e := &t.Entries[i]
		if !e.HoldsPlace() {
			continue
		}
		if file++; file >= h.Len() || len(e.Chunks) > 0 && h.Before(file) > e.Chunks[0].Inner-end {
			return nil, fmt.Errorf("make device: %q, file %d of %d: its header lies in what is before: %w", e.Name, file+1, h.Len(), toc.ErrInvalid)
		}
		for _, c := range e.Chunks {
			if c.BlobOff != 0 || c.BlobLen != t.BlobSize || c.Inner < end || c.Inner > layer.Size()-c.Len {
				return nil, fmt.Errorf("make device: %q: %d bytes at %d of %d, behind those at %d: %w", e.Name, c.Len, c.Inner, layer.Size(), end, toc.ErrInvalid)
			}
			end = c.Inner + c.Len
			d.places = append(d.places, place{off: places[i] + c.Off, len: c.Len, at: c.Inner, file: file})
		}
	}
	if file+1 != h.Len() {
		return nil, fmt.Errorf("make device: headers of %d files, and %d files: %w", h.Len(), file+1, toc.ErrInvalid)
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
		begin := roundUp(p.off + max(0, from-p.at))
		if next, far := d.headerBefore(i, from); far && next <= off {
			begin = next
		}
		off = min(off, begin)
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

// headerBefore tells whether the header of the file at place i lies before from of the
// layer and has not been read: then its bytes cost more than those of the next file,
// which begins at next.
func (d *Decoded) headerBefore(i int, from int64) (next int64, far bool) {
	file := d.places[i].file
	first := &d.places[d.firstOf(file)]
	if first.at-d.headers.Before(file) >= from {
		return 0, false
	}
	if known, err := d.headers.state(file); known || err != nil {
		return 0, false
	}
	if j := d.firstOf(file + 1); j < len(d.places) {
		return d.places[j].off, true
	}
	return d.size, true
}

func roundUp(off int64) int64 { return (off + toc.BlockSize - 1) &^ (toc.BlockSize - 1) }
