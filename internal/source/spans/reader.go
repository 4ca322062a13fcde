package spans

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/zran"
)

var errIndex = errors.New("the index does not fit the file")

// reader reads a range. Read and Close may be called at once.
type reader struct {
	ctx      context.Context
	b        *Blob
	lead     []byte // to be given before all else
	trail    []byte // to be given when off is end
	off, end int64  // of the decompressed bytes, still to be decoded or to come of data
	span     Span   // that is decoded, or is to be next
	data     []byte // what of it is still to come; it ends where the span or end does

	body   io.Reader // the file from at on; nil: it is to be asked for
	at, to int64     // what of the file body has still to give
	begun  bool      // body has given something
	last   byte      // then the byte before at

	refuted *source.Refuted // of ctx
	held    *limit.Held     // of the gate: the span
	isReady bool            // for the span that is decoded next
	open    source.Body     // under body
}

// begin asks the file for the spans of what is still to come.
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
	for last.From.Out > r.span.From.Out { // what is held at the end is not needed
		if data, _ := r.b.gate.recent.get(r.b, last.From.Out); data == nil {
			break
		}
		if last, err = r.find(last.From.Out - 1); err != nil {
			return err
		}
	}
	from, to := r.span.From.Start(), last.InEnd
	if from < 0 || to <= from || to > r.b.file.Size() {
		return fmt.Errorf("compressed bytes [%d,%d) of %d: %w: %w", from, to, r.b.file.Size(), errIndex, source.ErrNotBytes)
	}
	r.body, err = r.open.Replace(func() (io.ReadCloser, error) { return r.b.file.ReadRange(r.ctx, from, to-from) })
	r.at, r.to, r.begun = from, to, false
	return err
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
	if len(r.lead) > 0 {
		n := copy(p, r.lead)
		r.lead = r.lead[n:]
		return n, nil
	}
	if r.off == r.end {
		if len(r.trail) == 0 {
			return 0, io.EOF
		}
		n := copy(p, r.trail)
		r.trail = r.trail[n:]
		return n, nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.data) == 0 {
		if err := r.refuted.Until(r.decode, r.refute); err != nil {
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

// refute has the file asked for anew.
func (r *reader) refute() (again bool, err error) {
	r.body = nil
	return r.open.Refute(), nil
}

// ready takes memory for the span of the next byte, and has body reach it. Memory comes
// first: whoever has a request waits for nobody but the file.
func (r *reader) ready() error {
	if r.off >= r.span.End {
		next, err := r.find(r.off)
		if err != nil {
			return err
		}
		r.span = next
	}
	n := r.span.compressed() + r.until() - r.span.From.Out
	if r.body == nil || !r.held.TryTake(n) {
		r.body = nil
		if err := r.open.End(); err != nil {
			return err
		}
		if err := r.held.Take(n); err != nil {
			return err
		}
	}
	if r.body == nil || r.span.InEnd > r.to {
		return r.begin()
	}
	return nil
}

// until is to where the span is decoded: all of it where that can be held, since who
// reads more of it comes soon.
func (r *reader) until() int64 {
	end := min(r.span.End, r.end)
	if r.span.End-r.span.From.Out > maxRecent/2 && r.span.End-end > maxEdge {
		return end
	}
	return r.span.End
}

// decode decodes the span of the next byte, where it is not held.
func (r *reader) decode() error {
	if !r.isReady {
		r.drop()
		if data, from := r.b.gate.recent.get(r.b, r.off); data != nil {
			r.data = data[r.off-from : min(int64(len(data)), r.end-from)]
			return nil
		}
		if err := r.ready(); err != nil {
			return err
		}
	}
	r.isReady = false
	begin, to, end := r.span.From.Out, r.until(), min(r.span.End, r.end)
	data := make([]byte, to-begin)
	if err := r.inflate(data); err != nil {
		return err
	}
	if to == r.span.End {
		r.b.edges.add(data, begin, r.off, end)
		if len(data) <= maxRecent/2 {
			r.b.gate.recent.add(r.b, begin, data)
		}
	}
	r.data = data[r.off-begin : end-begin]
	return nil
}

// inflate fills data with what the span begins with. It decodes the bytes of the file
// while they come, and reads to the span's end: only when they have the digest that they
// must have, it succeeds.
func (r *reader) inflate(data []byte) error {
	in, err := r.packed()
	if err != nil {
		return err
	}
	d, ok := r.b.decoders.Get().(*zran.Decoder)
	if !ok {
		d = new(zran.Decoder)
	}
	defer r.b.decoders.Put(d)
	undecoded := d.Decode(data, r.span.From, in)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read the file at %d: %w", in.at, err)
	}
	r.at, r.last, r.begun = r.span.InEnd, in.last, true
	if [32]byte(in.sum.Sum(nil)) != r.span.Digest {
		return &source.WrongError{Err: fmt.Errorf("span of %d bytes from %d of the file has another digest than the index says: %w",
			r.span.compressed(), r.span.From.Start(), source.ErrNotBytes)}
	}
	if undecoded != nil {
		return fmt.Errorf("decode span at %d of the file: %w: %w", r.span.From.Start(), undecoded, source.ErrNotBytes)
	}
	return nil
}

// packed is the compressed bytes of the span, whose first may be the last of the
// span before.
func (r *reader) packed() (*packed, error) {
	from := r.span.From.Start()
	in := &packed{body: r.body, sum: sha256.New(), at: from, end: r.span.InEnd}
	if from == r.at-1 && r.begun {
		in.again, in.last = true, r.last
	} else if from < r.at {
		return nil, fmt.Errorf("compressed bytes [%d,%d) in what is left of [%d,%d): %w: %w", from, r.span.InEnd, r.at, r.to, errIndex, source.ErrNotBytes)
	} else if _, err := io.CopyN(io.Discard, r.body, from-r.at); err != nil { // spans without data lie between
		return nil, fmt.Errorf("read the file at %d: %w", r.at, err)
	}
	if r.span.InEnd > r.to {
		return nil, fmt.Errorf("compressed bytes [%d,%d) in what is left of [%d,%d): %w: %w", from, r.span.InEnd, r.at, r.to, errIndex, source.ErrNotBytes)
	}
	return in, nil
}

// packed reads the compressed bytes of a span and sums them up.
type packed struct {
	body    io.Reader
	sum     hash.Hash
	at, end int64 // of the file, still to come
	again   bool  // last comes before body
	last    byte  // that was read
	err     error // of body; final
}

// Read implements io.Reader.
func (in *packed) Read(p []byte) (n int, err error) {
	switch {
	case in.err != nil:
		return 0, in.err
	case in.at == in.end:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case in.again:
		p[0], n, in.again = in.last, 1, false
	default:
		n, err = in.body.Read(p[:min(int64(len(p)), in.end-in.at)])
	}
	in.at += int64(n)
	in.sum.Write(p[:n])
	if n > 0 {
		in.last = p[n-1]
	}
	if err != nil && in.at < in.end {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		in.err = err
		return n, err
	}
	return n, nil
}

// drop gives the decoded span up.
func (r *reader) drop() {
	r.data = nil
	r.held.Drop()
}

// Close implements io.Closer. A Read that waits for the file ends with an error.
func (r *reader) Close() error {
	r.held.Close()
	return r.open.Close()
}
