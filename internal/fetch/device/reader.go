package device

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// reader reads a range of a device. Read and Close may be called at once.
type reader struct {
	ctx      context.Context
	b        *Blob
	off, end int64 // in the device, still to come
	next     int   // the part at off, or the next one
	chunk    []byte
	chunkAt  int64 // where chunk lies in the device

	body    *bufio.Reader // the layer from at on
	at, to  int64         // what of the layer body has still to give
	dec     io.ReadCloser // decodes the compressed range decOff, of which it has given decPos bytes
	decOff  int64
	decPos  int64
	limited *io.LimitedReader // what dec may take of body

	wait context.Context // ends with ctx and with Close: for the gate
	stop context.CancelFunc

	mu     sync.Mutex
	open   io.Closer // under body
	closed bool
	held   int64 // bytes that passed the gate
}

var errClosed = errors.New("read of a closed reader")

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.end-r.off)]
	zeros := r.end
	if r.next < len(r.b.parts) {
		zeros = min(zeros, r.b.parts[r.next].off)
	}
	if r.off < zeros {
		n := min(int64(len(p)), zeros-r.off)
		clear(p[:n])
		r.off += n
		return int(n), nil
	}
	part := &r.b.parts[r.next]
	if r.chunk == nil || r.chunkAt != part.off {
		if err := r.load(part); err != nil {
			return 0, fmt.Errorf("read device at %d: %w", r.off, err)
		}
	}
	n := copy(p, r.chunk[r.off-r.chunkAt:])
	if r.off += int64(n); r.off == part.end() || r.off == r.end {
		r.drop()
	}
	if r.off == part.end() {
		r.next++
	}
	if r.off == r.end && r.dec != nil {
		// Close may come while a Read runs, so it leaves the decoder alone.
		err := r.dec.Close()
		r.dec = nil
		return n, err
	}
	return n, nil
}

// hold waits until a chunk of n bytes may be in memory. The one before is dropped.
func (r *reader) hold(n int64) error {
	r.drop()
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

// drop gives the chunk up.
func (r *reader) drop() {
	r.chunk = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	r.releaseLocked()
}

func (r *reader) releaseLocked() {
	r.b.gate.bytes.Release(r.held)
	r.held = 0
}

// load decodes a part whole and verifies it. After an error it holds none.
func (r *reader) load(p *part) (err error) {
	if err := r.hold(p.len); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.drop()
		}
	}()
	if err := r.seek(p); err != nil {
		return err
	}
	chunk := make([]byte, p.len)
	n, err := io.ReadFull(r.dec, chunk)
	r.decPos += int64(n)
	if err != nil {
		return r.decodeError(err)
	}
	if p.hasDigest && sha256.Sum256(chunk) != p.digest {
		return fmt.Errorf("chunk of %d bytes from %d of the layer: %w: %w", p.len, p.blobOff, toc.ErrDigest, source.ErrNotBytes)
	}
	r.chunk, r.chunkAt = chunk, p.off
	return nil
}

// decodeError tells a source that ended early from data that is too short.
func (r *reader) decodeError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("decode: %w: %w", errShort, err)
	}
	return fmt.Errorf("decode: %w", err)
}

// seek makes dec stand where p begins.
func (r *reader) seek(p *part) error {
	if r.dec != nil && (r.decOff != p.blobOff || r.decPos > p.inner) {
		if err := r.endDecoder(); err != nil {
			return err
		}
	}
	if r.dec == nil {
		if r.body == nil || p.blobOff < r.at || p.blobOff+p.blobLen > r.to {
			if err := r.request(p); err != nil {
				return err
			}
		}
		if err := r.skip(p.blobOff - r.at); err != nil {
			return err
		}
		r.limited = &io.LimitedReader{R: r.body, N: p.blobLen}
		dec, err := r.b.decoders.Open(p.codec, r.limited)
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
		r.dec, r.decOff, r.decPos = dec, p.blobOff, 0
		r.at = p.blobOff + p.blobLen
	}
	n, err := io.CopyN(io.Discard, r.dec, p.inner-r.decPos)
	r.decPos += n
	if err != nil {
		return r.decodeError(err)
	}
	return nil
}

// endDecoder puts body behind the compressed range that was decoded.
func (r *reader) endDecoder() error {
	err := r.dec.Close()
	r.dec = nil
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	left := r.limited.N
	r.at -= left
	return r.skip(left)
}

// skip leaves n bytes of body out.
func (r *reader) skip(n int64) error {
	if n == 0 {
		return nil
	}
	if _, err := io.CopyN(io.Discard, r.body, n); err != nil {
		return fmt.Errorf("read the layer at %d: %w", r.at, err)
	}
	r.at += n
	return nil
}

// request asks the layer for p and what follows it there, as far as it is wanted.
func (r *reader) request(p *part) error {
	if err := r.endBody(); err != nil {
		return err
	}
	off, to := r.b.span(r.next, r.end)
	if off != p.blobOff {
		return fmt.Errorf("internal error: request at %d for a chunk at %d", off, p.blobOff)
	}
	body, err := r.b.layer.ReadRange(r.ctx, off, to-off)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.Join(errClosed, body.Close())
	}
	r.open, r.at, r.to = body, off, to
	r.body = bufio.NewReaderSize(body, 64<<10)
	return nil
}

func (r *reader) endBody() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errClosed
	}
	if r.open == nil {
		return nil
	}
	err := r.open.Close()
	r.open, r.body = nil, nil
	return err
}

// Close implements io.Closer. A Read that waits for the layer ends with an error.
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
