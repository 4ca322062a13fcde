package device

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
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

	body    *layerReader  // the layer from at on; nil: it is to be asked for
	at, to  int64         // what of the layer body has still to give
	dec     io.ReadCloser // decodes the compressed range decOff, of which it has given decPos bytes
	decOff  int64
	decPos  int64
	limited *io.LimitedReader // what dec may take of body

	refuted *source.Refuted // of ctx
	held    *limit.Held     // of the gate: chunk
	isReady bool            // for the part at off
	open    source.Body     // under body
}

// layerReader reads the layer, and tells its failures from those of decoders.
type layerReader struct {
	r   *bufio.Reader
	err error // of the layer, but for its end
}

func (l *layerReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		l.err = err
	}
	return n, err
}

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

// drop gives the chunk up.
func (r *reader) drop() {
	r.chunk = nil
	r.held.Drop()
}

// load decodes a part whole and verifies it; where it is wrong, it is asked for
// elsewhere. After an error it holds none.
func (r *reader) load(p *part) error {
	return r.refuted.Until(func() error { return r.decode(p) }, r.refute)
}

// refute has the layer asked for anew.
func (r *reader) refute() (again bool, err error) {
	if r.dec != nil {
		err = r.dec.Close()
	}
	r.dec, r.body = nil, nil
	return r.open.Refute(), err
}

// ready takes memory for p and has body reach it. Memory comes first: whoever has a
// request waits for nobody but the layer.
func (r *reader) ready(p *part) error {
	if r.body == nil || !r.held.TryTake(p.len) {
		if err := r.endAll(); err != nil {
			return err
		}
		if err := r.held.Take(p.len); err != nil {
			return err
		}
	}
	return r.reach(p)
}

// endAll gives up what was asked for.
func (r *reader) endAll() (err error) {
	if r.dec != nil {
		err = r.dec.Close()
	}
	r.dec, r.body = nil, nil
	return errors.Join(err, r.open.End())
}

// decode is load from who is asked now.
func (r *reader) decode(p *part) (err error) {
	defer func() {
		if err != nil {
			r.drop()
		}
	}()
	if !r.isReady {
		r.drop()
		if err := r.ready(p); err != nil {
			return err
		}
	}
	r.isReady = false
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
		return &source.WrongError{Err: fmt.Errorf("chunk of %d bytes from %d of the layer: %w: %w", p.len, p.blobOff, toc.ErrDigest, source.ErrNotBytes)}
	}
	r.chunk, r.chunkAt = chunk, p.off
	return nil
}

// decodeError tells a layer that cannot be read from data that cannot be decoded.
func (r *reader) decodeError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", errShort, err)
	}
	if r.body.err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return &source.WrongError{Err: fmt.Errorf("decode: %w: %w", err, source.ErrNotBytes)}
}

// reach has body give p, unless dec does already.
func (r *reader) reach(p *part) error {
	if r.dec != nil && (r.decOff != p.blobOff || r.decPos > p.inner) {
		if err := r.endDecoder(); err != nil {
			return err
		}
	}
	if r.dec == nil && (r.body == nil || p.blobOff < r.at || p.blobOff+p.blobLen > r.to) {
		return r.request(p)
	}
	return nil
}

// seek makes dec stand where p begins, which body reaches.
func (r *reader) seek(p *part) error {
	if r.dec == nil {
		if err := r.skip(p.blobOff - r.at); err != nil {
			return err
		}
		r.limited = &io.LimitedReader{R: r.body, N: p.blobLen}
		dec, err := r.b.decoders.Open(p.codec, r.limited)
		if err != nil {
			return r.decodeError(err)
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
	off, to := r.b.span(r.next, r.end)
	if off != p.blobOff {
		return fmt.Errorf("internal error: request at %d for a chunk at %d", off, p.blobOff)
	}
	r.body = nil
	body, err := r.open.Replace(func() (io.ReadCloser, error) { return r.b.layer.ReadRange(r.ctx, off, to-off) })
	if err != nil {
		return err
	}
	r.at, r.to = off, to
	r.body = &layerReader{r: bufio.NewReaderSize(body, 64<<10)}
	return nil
}

// Close implements io.Closer. A Read that waits for the layer ends with an error.
func (r *reader) Close() error {
	r.held.Close()
	return r.open.Close()
}
