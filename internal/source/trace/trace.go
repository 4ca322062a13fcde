// Package trace counts what is asked of blobs: requests, bytes, errors and the
// time to the first byte.
package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// Request is one ReadRange, from the call to the Close of its reader.
type Request struct {
	Off, N    int64         // the range asked for
	Bytes     int64         // delivered
	FirstByte time.Duration // from the call to the first byte; 0: none came
	Duration  time.Duration // from the call to the end
	// Err is what ended it early, or why its bytes were found wrong, or nil. A reader
	// that is closed early has none.
	Err error
}

// Tally counts the requests of the blobs that it wraps.
type Tally struct {
	done func(Request)

	requests, open, bytes, failed, cancelled atomic.Int64

	mu        sync.Mutex
	firstByte Latency
}

// NewTally makes a tally. done is called at the end of each request, possibly
// concurrently; nil: not.
func NewTally(done func(Request)) *Tally { return &Tally{done: done} }

// Stats is what a tally has counted.
type Stats struct {
	Requests  int64 // made
	Open      int64 // of them not ended
	Bytes     int64 // delivered
	Failed    int64 // requests that ended with an error other than the next
	Cancelled int64 // requests whose context ended
	FirstByte Latency
}

// Snapshot returns the counts so far.
func (t *Tally) Snapshot() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Requests: t.requests.Load(), Open: t.open.Load(), Bytes: t.bytes.Load(),
		Failed: t.failed.Load(), Cancelled: t.cancelled.Load(), FirstByte: t.firstByte,
	}
}

// Wrap returns b with its requests counted in t.
func (t *Tally) Wrap(b source.Blob) source.Blob {
	return &blob{source.Wrapper{Blob: b}, t}
}

type blob struct {
	source.Wrapper
	tally *Tally
}

func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	t := b.tally
	t.requests.Add(1)
	t.open.Add(1)
	r := &reader{tally: t, ctx: ctx, began: time.Now(), request: Request{Off: off, N: n}}
	rc, err := b.Blob.ReadRange(ctx, off, n)
	if err != nil {
		r.request.Err = err
		r.end()
		return nil, err
	}
	r.ReadCloser = rc
	return r, nil
}

type reader struct {
	io.ReadCloser
	tally *Tally
	ctx   context.Context // of the request
	began time.Time

	mu      sync.Mutex // held to look at request, never through a read
	request Request
	ended   bool
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.tally.bytes.Add(int64(n))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return n, err // closed while reading: what came is counted, the error is the closing's
	}
	if n > 0 && r.request.Bytes == 0 {
		r.request.FirstByte = time.Since(r.began)
	}
	r.request.Bytes += int64(n)
	if err != nil && !errors.Is(err, io.EOF) && r.request.Err == nil {
		r.request.Err = err
	}
	return n, err
}

var errWrong = fmt.Errorf("%w: they were found wrong", source.ErrNotBytes)

// Refute implements source.Refutable. A request whose bytes are wrong has failed.
func (r *reader) Refute() bool {
	again := source.Refute(r.ReadCloser)
	r.mu.Lock()
	defer r.mu.Unlock()
	if names := source.RefutedIn(r.ctx).Names(); names == "" {
		r.request.Err = errWrong
	} else {
		r.request.Err = fmt.Errorf("%w: they came from %s", errWrong, names)
	}
	return again
}

func (r *reader) Close() error {
	r.end()
	return r.ReadCloser.Close()
}

func (r *reader) end() {
	r.mu.Lock()
	q, ended := r.request, r.ended
	r.ended = true
	r.mu.Unlock()
	if ended {
		return
	}
	q.Duration = time.Since(r.began)
	t := r.tally
	t.open.Add(-1)
	switch {
	case q.Err == nil:
	case r.ctx.Err() != nil && !errors.Is(q.Err, errWrong): // time-outs of the network are no cancelling, though some say they are
		t.cancelled.Add(1)
	default:
		t.failed.Add(1)
	}
	if q.FirstByte > 0 {
		t.mu.Lock()
		t.firstByte.add(q.FirstByte)
		t.mu.Unlock()
	}
	if t.done != nil {
		t.done(q)
	}
}
