package ranged

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

var errStall = errors.New("stall")

// guard ends one request: with the caller's context, with the blob, and when a
// read of its body stalls.
type guard struct {
	caller context.Context
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	detach func() bool // from the blob's life
	timer  *time.Timer // runs while a read is in progress
	stall  time.Duration
}

func newGuard(caller, life context.Context, stall time.Duration) *guard {
	g := &guard{caller: caller, stall: stall}
	g.ctx, g.cancel = context.WithCancelCause(caller)
	g.detach = context.AfterFunc(life, func() { g.cancel(os.ErrClosed) })
	g.timer = time.AfterFunc(stall, func() { g.cancel(errStall) })
	g.timer.Stop()
	return g
}

func (g *guard) end() {
	g.timer.Stop()
	g.detach()
	g.cancel(os.ErrClosed)
}

// explain says what err, which the request to name met, comes from.
func (g *guard) explain(err error, name string) error {
	cause := context.Cause(g.ctx)
	switch {
	case g.caller.Err() != nil:
		return g.caller.Err()
	case errors.Is(cause, os.ErrClosed):
		return os.ErrClosed
	case errors.Is(cause, errStall):
		err = fmt.Errorf("no data for %v", g.stall)
	case errors.Is(err, io.EOF):
		// Nobody may take a connection that broke for the end of the bytes.
		err = io.ErrUnexpectedEOF
	}
	return &RequestError{URL: name, Err: err}
}

// body reads a response's body: what it returns are the first bytes of what
// the response promised, and it fails where there are fewer or more.
type body struct {
	rc     io.ReadCloser
	guard  *guard
	name   string // redacted URL
	got    int64
	length int64 // promised; -1: nothing is promised
	framed bool  // the protocol itself ends the body at length
}

// expect sets the length that the body must have; framed says that the
// response's Content-Length, which net/http enforces, is the same.
func (b *body) expect(length int64, framed bool) { b.length, b.framed = length, framed }

func (b *body) Read(p []byte) (int, error) {
	b.guard.timer.Reset(b.guard.stall)
	defer b.guard.timer.Stop()
	n, err := b.rc.Read(p)
	b.got += int64(n)
	switch {
	case b.length >= 0 && b.got > b.length:
		return 0, b.tooLong()
	case b.length >= 0 && b.got == b.length && !b.framed && err == nil:
		// The last piece is handed on only when the body ends with it.
		if err := b.atEnd(); err != nil {
			return 0, err
		}
	case errors.Is(err, io.EOF):
		return n, io.EOF
	case err != nil:
		return n, b.guard.explain(err, b.name)
	}
	return n, nil
}

func (b *body) atEnd() error {
	var one [1]byte
	for {
		n, err := b.rc.Read(one[:])
		switch {
		case n > 0:
			return b.tooLong()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return b.guard.explain(err, b.name)
		}
	}
}

func (b *body) tooLong() error {
	return fmt.Errorf("read %s: %w: body is longer than %d bytes", b.name, source.ErrNotBytes, b.length)
}

// drainLimit and drainTime bound what the reuse of a connection is worth.
const (
	drainLimit = 64 << 10
	drainTime  = time.Second
)

// drain reads the rest of a short body. Why that may fail is of no interest
// for a body that nobody needs; the connection is closed then.
func (b *body) drain() {
	late := time.AfterFunc(drainTime, func() { b.guard.cancel(errStall) })
	defer late.Stop()
	buf := make([]byte, 4096)
	b.length = -1
	for b.got < drainLimit {
		if _, err := b.Read(buf); err != nil {
			return
		}
	}
}

// Close ends the request first: the body's own Close would wait for a read in progress.
func (b *body) Close() error {
	b.guard.end()
	err := b.rc.Close()
	if errors.Is(err, context.Canceled) || errors.Is(err, os.ErrClosed) {
		return nil // our own cancelling
	}
	return err
}
