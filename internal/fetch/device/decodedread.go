package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lacunafs/lacuna/internal/source"
)

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
	r.wait, r.stop = context.WithCancel(ctx)
	// The request is made here, so that its failure is ReadRange's.
	if r.next < len(d.places) && d.places[r.next].off <= off {
		before, err := r.before()
		if err == nil {
			err = r.request(before)
		}
		if err != nil {
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

	wait context.Context // ends with ctx and with Close: for headers
	stop context.CancelFunc

	body io.Reader   // nil: it is to be asked for
	open source.Body // under body
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

// read reads of the place at off, after the header where the file begins with it.
func (r *decodedReader) read(p []byte) (int, error) {
	place := &r.d.places[r.next]
	want := place.at + r.off - place.off
	before, err := r.before()
	if err != nil {
		return 0, err
	}
	if from := want - before; r.body == nil || from < r.at || want >= r.to || from-r.at > maxSkip {
		if err := r.request(before); err != nil {
			return 0, err
		}
	}
	skipped, err := io.CopyN(io.Discard, r.body, want-before-r.at)
	r.at += skipped
	if err != nil {
		return 0, early(err)
	}
	if before > 0 {
		if err := r.d.headers.read(place.file, r.body); err != nil {
			return 0, early(err)
		}
		r.at += before
	}
	n, err := r.body.Read(p[:min(int64(len(p)), place.end()-r.off)])
	r.at += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, early(err)
}

// before is how much of the layer is read before the byte at off: the header of the
// file that begins there, where it has not been read. That of a file that begins
// elsewhere is read here, by a request of its own.
func (r *decodedReader) before() (int64, error) {
	place := &r.d.places[r.next]
	known, err := r.d.headers.state(place.file)
	if known || err != nil {
		return 0, err
	}
	if r.off == place.off && (r.next == 0 || r.d.places[r.next-1].file != place.file) {
		return r.d.headers.Before(place.file), nil
	}
	// Nothing is held meanwhile that others wait for.
	r.body = nil
	if err := r.open.End(); err != nil {
		return 0, err
	}
	return 0, r.d.readHeader(r.wait, place.file)
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

// request asks the layer for all that the rest of the range needs, and what is before.
func (r *decodedReader) request(before int64) error {
	from, to := r.d.within(r.off, r.end)
	from -= before
	body, err := r.open.Replace(func() (io.ReadCloser, error) { return r.d.layer.ReadRange(r.ctx, from, to-from) })
	r.body, r.at, r.to = body, from, to
	return err
}

// Close implements io.Closer. A Read that waits for the layer ends with an error.
func (r *decodedReader) Close() error {
	r.stop()
	return r.open.Close()
}
