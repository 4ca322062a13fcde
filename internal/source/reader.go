package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// CheckRange returns an error that wraps ErrRange unless ReadRange(off, n) of b
// is allowed by the contract of Blob. Every leaf calls it before any request.
func CheckRange(b Blob, off, n int64) error {
	// off+n may overflow, size-off may not.
	if size := b.Size(); off < 0 || n <= 0 || off > size || n > size-off {
		return fmt.Errorf("%w: [%d,+%d) of %d bytes", ErrRange, off, n, size)
	}
	if off != 0 && IsSequential(b) {
		return fmt.Errorf("%w: offset %d of a source that can be read only from the start", ErrRange, off)
	}
	return nil
}

// ShortError is the error of a body that ends before its promised length.
type ShortError struct {
	Got, Want int64 // bytes
}

// Error says how much came.
func (e *ShortError) Error() string {
	return fmt.Sprintf("body ends after %d of %d bytes", e.Got, e.Want)
}

// Temporary is true: connections break, the next one may last.
func (e *ShortError) Temporary() bool { return true }

// Unwrap makes it an io.ErrUnexpectedEOF.
func (e *ShortError) Unwrap() error { return io.ErrUnexpectedEOF }

// Exact returns a reader of exactly n bytes of rc, as Blob promises it. It ends
// with io.EOF after n bytes whatever rc has behind them, with a ShortError where
// rc ends earlier, and with an error that wraps ctx's once ctx is done, which
// it checks before each read: rc needs to watch ctx only where its Read can
// block. The first error is final. Close closes rc once; rc's Close must be
// allowed while a Read is in progress.
func Exact(ctx context.Context, rc io.ReadCloser, n int64) io.ReadCloser {
	return &exact{ctx: ctx, rc: rc, want: n}
}

type exact struct {
	ctx       context.Context
	rc        io.ReadCloser
	got, want int64
	err       error // what every later Read returns
	closed    atomic.Bool
}

func (e *exact) Read(p []byte) (int, error) {
	switch {
	case e.closed.Load():
		return 0, fmt.Errorf("read range: %w", os.ErrClosed)
	case e.err != nil:
		return 0, e.err
	case e.got == e.want:
		return 0, io.EOF
	case e.ctx.Err() != nil:
		e.err = fmt.Errorf("read range: %w", e.ctx.Err())
		return 0, e.err
	}
	if left := e.want - e.got; int64(len(p)) > left {
		p = p[:left]
	}
	n, err := e.rc.Read(p)
	e.got += int64(n)
	switch {
	case errors.Is(err, io.EOF) && e.got < e.want:
		err = &ShortError{Got: e.got, Want: e.want}
	case e.got == e.want:
		err = io.EOF
	}
	e.err = err
	return n, err
}

// Refute implements Refutable.
func (e *exact) Refute() bool { return Refute(e.rc) }

func (e *exact) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	return e.rc.Close()
}
