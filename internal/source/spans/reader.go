package spans

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/zran"
)

var (
	errClosed = errors.New("read of a closed reader")
	errIndex  = errors.New("the index does not fit the file")
)

// reader reads a range. Read and Close may be called at once.
type reader struct {
	ctx      context.Context
	b        *Blob
	off, end int64  // of the decompressed bytes, still to come
	span     Span   // that is decoded, or is to be next
	data     []byte // what of it is still to come; it ends where the span or the range does

	body   io.Reader // the file from at on
	at, to int64     // what of the file body has still to give
	begun  bool      // body has given something
	last   byte      // then the byte before at

	wait context.Context // ends with ctx and with Close: for the gate
	stop context.CancelFunc

	mu     sync.Mutex
	open   io.Closer // under body
	closed bool
	held   int64 // bytes that passed the gate
}

// begin asks the file for the spans of the range.
func (r *reader) begin() error {
	var err error
	if r.span, err = r.find(r.off); err != nil {
		return err
	}
	last := r.span
	if r.end > last.End {
		if last, err = r.find(r.end - 1); err != nil {
			return err
		}
	}
	from, to := r.span.From.Start(), last.InEnd
	if from < 0 || to <= from || to > r.b.file.Size() {
		return fmt.Errorf("compressed bytes [%d,%d) of %d: %w: %w", from, to, r.b.file.Size(), errIndex, source.ErrNotBytes)
	}
	body, err := r.b.file.ReadRange(r.ctx, from, to-from)
	if err != nil {
		return err
	}
	r.body, r.open, r.at, r.to = body, body, from, to
	return nil
}

// find is the span of the byte at off, where it is one.
func (r *reader) find(off int64) (Span, error) {
	s, err := r.b.index.Find(r.ctx, off)
	if err != nil {
		return s, fmt.Errorf("read the index of a layer at %d: %w", off, err)
	}
	if s.From.Out < 0 || s.From.Out > off || s.End <= off || s.End > r.b.Size() || s.compressed() <= 0 {
		return s, fmt.Errorf("span of [%d,%d) from [%d,%d): %w: %w", s.From.Out, s.End, s.From.Start(), s.InEnd, errIndex, source.ErrNotBytes)
	}
	if s.compressed() > MaxSpan-(s.End-s.From.Out) {
		return s, fmt.Errorf("span of %d bytes, %d compressed: %w", s.End-s.From.Out, s.compressed(), ErrSpan)
	}
	return s, nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.data) == 0 {
		if err := r.decode(); err != nil {
			r.drop()
			return 0, fmt.Errorf("read decompressed bytes at %d: %w", r.off, err)
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	if r.off += int64(n); len(r.data) == 0 {
		r.drop()
	}
	return n, nil
}

// decode decodes the span of the next byte. Whoever is past the gate has its
// request, so that it waits for nobody but the file.
func (r *reader) decode() error {
	r.drop()
	if r.off >= r.span.End {
		next, err := r.find(r.off)
		if err != nil {
			return err
		}
		r.span = next
	}
	to := min(r.span.End, r.end)
	if err := r.hold(r.span.compressed() + to - r.span.From.Out); err != nil {
		return err
	}
	packed, err := r.fetch()
	if err != nil {
		return err
	}
	if sha256.Sum256(packed) != r.span.Digest {
		return fmt.Errorf("span of %d bytes from %d of the file has another digest than the index says: %w",
			len(packed), r.span.From.Start(), source.ErrNotBytes)
	}
	data := make([]byte, to-r.span.From.Out)
	d, ok := r.b.decoders.Get().(*zran.Decoder)
	if !ok {
		d = new(zran.Decoder)
	}
	defer r.b.decoders.Put(d)
	if err := d.Decode(data, r.span.From, bytes.NewReader(packed)); err != nil {
		return fmt.Errorf("decode span at %d of the file: %w: %w", r.span.From.Start(), err, source.ErrNotBytes)
	}
	r.data = data[r.off-r.span.From.Out:]
	return nil
}

// fetch is the compressed bytes of the span, whose first may be the last of the
// span before.
func (r *reader) fetch() ([]byte, error) {
	packed := make([]byte, r.span.compressed())
	rest, from := packed, r.span.From.Start()
	if from == r.at-1 && r.begun {
		packed[0], rest, from = r.last, packed[1:], r.at
	}
	if from < r.at || r.span.InEnd > r.to {
		return nil, fmt.Errorf("compressed bytes [%d,%d) in what is left of [%d,%d): %w: %w", from, r.span.InEnd, r.at, r.to, errIndex, source.ErrNotBytes)
	}
	// Spans without data lie between.
	if _, err := io.CopyN(io.Discard, r.body, from-r.at); err != nil {
		return nil, fmt.Errorf("read the file at %d: %w", r.at, err)
	}
	if _, err := io.ReadFull(r.body, rest); err != nil {
		return nil, fmt.Errorf("read the file at %d: %w", from, err)
	}
	r.at, r.last, r.begun = r.span.InEnd, packed[len(packed)-1], true
	return packed, nil
}

// hold waits until n bytes may be in memory.
func (r *reader) hold(n int64) error {
	if err := r.b.gate.bytes.Acquire(r.wait, n); err != nil {
		if r.ctx.Err() == nil {
			err = errClosed
		}
		return fmt.Errorf("wait for memory: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		r.b.gate.bytes.Release(n)
		return errClosed
	}
	r.held = n
	return nil
}

// drop gives the decoded span up.
func (r *reader) drop() {
	r.data = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseLocked()
}

func (r *reader) releaseLocked() {
	r.b.gate.bytes.Release(r.held)
	r.held = 0
}

// Close implements io.Closer. A Read that waits for the file ends with an error.
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.stop()
	r.releaseLocked()
	if r.open == nil {
		return nil
	}
	return r.open.Close()
}
