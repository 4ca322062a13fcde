package concat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
)

// reader reads a range of a Blob. Read and Close may be called at once.
type reader struct {
	ctx      context.Context
	b        *Blob
	off, end int64 // still to come
	next     int   // the part at off, or the next one
	body     io.Reader
	err      error // what every later Read returns

	mu     sync.Mutex
	open   io.Closer // under body
	closed bool
}

// part is the next one, if it has a byte in the range.
func (r *reader) part() (*Part, bool) {
	if r.next == len(r.b.o.Parts) || r.b.o.Parts[r.next].Off >= r.end {
		return nil, false
	}
	return &r.b.o.Parts[r.next], true
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.isClosed() {
		return 0, fmt.Errorf("read parts: %w", os.ErrClosed)
	}
	if r.err == nil && r.off == r.end {
		r.err = io.EOF
	}
	if r.err == nil {
		r.err = r.ctx.Err()
	}
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.read(p[:min(int64(len(p)), r.end-r.off)])
	r.off += int64(n)
	r.err = err
	return n, err
}

func (r *reader) read(p []byte) (int, error) {
	part, ok := r.part()
	zeros := r.end
	if ok {
		zeros = part.Off
	}
	if r.off < zeros {
		n := min(int64(len(p)), zeros-r.off)
		clear(p[:n])
		return int(n), nil
	}
	if r.body == nil {
		if err := r.request(part); err != nil {
			return 0, err
		}
	}
	n, err := r.body.Read(p[:min(int64(len(p)), part.End()-r.off)])
	done := r.off+int64(n) == min(part.End(), r.end)
	switch {
	case done && (err == nil || errors.Is(err, io.EOF)):
		r.tell(nil)
		if err := r.endBody(); err != nil {
			return n, r.fail(err)
		}
		r.next++
		return n, nil
	case errors.Is(err, io.EOF):
		return n, r.fail(fmt.Errorf("read part at %d: %w", r.off+int64(n)-part.Off, io.ErrUnexpectedEOF))
	case err != nil:
		return n, r.fail(err)
	}
	return n, nil
}

// tell tells how the reading of the next part ended.
func (r *reader) tell(err error) {
	if r.ctx.Err() == nil && !r.isClosed() {
		r.b.o.Tell(r.next, err)
	}
}

func (r *reader) fail(err error) error {
	r.tell(err)
	return &PartError{Part: r.next, Name: r.b.o.Name(r.next), Err: err}
}

// request asks for what the range has of the part.
func (r *reader) request(part *Part) error {
	if err := r.ask(part); err != nil {
		return r.fail(err)
	}
	return nil
}

func (r *reader) ask(part *Part) error {
	blob, err := r.b.o.Open(r.next)
	if err != nil {
		return err
	}
	from, n := r.off-part.Off, min(r.end, part.End())-r.off
	if !part.Whole() {
		return r.begin(blob, from, n)
	}
	if err := r.begin(blob, 0, part.Size); err != nil {
		return err
	}
	whole := make([]byte, part.Size)
	_, err = io.ReadFull(r.body, whole)
	if err = errors.Join(err, r.endBody()); err != nil {
		return err
	}
	if sum := sha256.Sum256(whole); sum != part.Digest {
		return fmt.Errorf("%w: it is %x, and should be %x", ErrDigest, sum, part.Digest)
	}
	r.body = bytes.NewReader(whole[from:][:n])
	return nil
}

// begin asks a part's blob for a range.
func (r *reader) begin(blob source.Blob, off, n int64) error {
	body, err := blob.ReadRange(r.ctx, off, n)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(os.ErrClosed, body.Close())
	}
	r.open, r.body = body, body
	return nil
}

func (r *reader) endBody() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.body = nil
	if r.closed || r.open == nil {
		return nil
	}
	open := r.open
	r.open = nil
	return open.Close()
}

func (r *reader) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Close implements io.Closer. A Read that waits for a part ends with an error.
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	if r.open == nil {
		return nil
	}
	return r.open.Close()
}
