package sourcetest

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
)

// ErrInjected is in every error that a Failing blob makes up. It is temporary.
var ErrInjected error = injected{}

type injected struct{}

func (injected) Error() string   { return "injected" }
func (injected) Temporary() bool { return true }

// Failing fails the Nth operation on it, and no other: each ReadRange and each
// Read and Close of a reader counts. A Read that fails delivers half of its bytes first.
type Failing struct {
	source.Wrapper
	nth   int64
	err   error
	count atomic.Int64
}

// FailNth wraps b so that its nth operation, counted from 1, fails with err; nil: ErrInjected.
//
//	for n := int64(1); ; n++ {
//		b := sourcetest.FailNth(blob, n, nil)
//		... // right bytes or an error
//		if !b.Fired() {
//			break
//		}
//	}
func FailNth(b source.Blob, nth int64, err error) *Failing {
	if err == nil {
		err = ErrInjected
	}
	return &Failing{Wrapper: source.Wrapper{Blob: b}, nth: nth, err: err}
}

// Fired tells whether the operation that fails has come.
func (f *Failing) Fired() bool { return f.count.Load() >= f.nth }

func (f *Failing) fails() bool { return f.count.Add(1) == f.nth }

// ReadRange is the wrapped blob's, unless it is the one that fails.
func (f *Failing) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if f.fails() {
		return nil, f.err
	}
	r, err := f.Blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &failingReader{r, f}, nil
}

type failingReader struct {
	io.ReadCloser
	f *Failing
}

func (r *failingReader) Read(p []byte) (int, error) {
	if !r.f.fails() {
		return r.ReadCloser.Read(p)
	}
	n, err := r.ReadCloser.Read(p[:len(p)/2])
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, r.f.err
}

func (r *failingReader) Close() error {
	err := r.ReadCloser.Close()
	if r.f.fails() {
		return errors.Join(r.f.err, err)
	}
	return err
}
