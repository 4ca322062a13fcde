package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Body is the body that a reader of several requests reads now. Close may be called at
// any time, also while it is read; the rest is for the reader's goroutine.
type Body struct {
	mu     sync.Mutex // not held while anything is asked
	rc     io.ReadCloser
	closed bool
}

// Replace closes the body and has the one that ask makes in its place. It fails with an
// error that wraps os.ErrClosed after Close.
func (b *Body) Replace(ask func() (io.ReadCloser, error)) (io.Reader, error) {
	if err := b.End(); err != nil {
		return nil, err
	}
	rc, err := ask()
	if err != nil {
		return nil, err
	}
	if err := b.put(rc); err != nil {
		return nil, err
	}
	return rc, nil
}

// End closes the body; another one may be asked for. It fails after Close.
func (b *Body) End() error { return b.put(nil) }

// put closes the body and has rc in its place, or closes rc where that is too late.
func (b *Body) put(rc io.ReadCloser) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.rc
	if b.closed {
		old, err = rc, fmt.Errorf("read range: %w", os.ErrClosed)
	} else {
		b.rc = rc
	}
	if old == nil {
		return err
	}
	return errors.Join(err, old.Close())
}

// Refute refutes what was read of the body: false after Close.
func (b *Body) Refute() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.closed && Refute(b.rc)
}

// Close closes the body, for good.
func (b *Body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.rc == nil {
		return nil
	}
	rc := b.rc
	b.rc = nil
	return rc.Close()
}
