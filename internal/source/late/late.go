// Package late makes blobs of sources that are asked only when they are first read.
//
// A late blob has a size from the start. Its first reading opens the source, which
// must have that size, and tells which version it found; from then on the blob is
// bound to it as any other is. A source that cannot be opened is asked again by the
// next reading.
package late

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
)

// Opener opens a source, and binds the blob to the version that it finds.
type Opener struct {
	// Size that the blob must have.
	Size int64
	// Open asks the source.
	Open func(context.Context) (source.Blob, error)
	// Bound is told once what was found, before a byte of it is read. An error
	// fails the reading, and the next one opens the source again. nil: not called.
	Bound func(source.Blob) error
}

// SizeError says that the source has another size than it must have. It is a
// source.ErrChanged: the bytes that were asked for are not there.
type SizeError struct {
	Size, Want int64 // in bytes
}

// Error tells both.
func (e *SizeError) Error() string {
	return fmt.Sprintf("the source has %d bytes, and should have %d", e.Size, e.Want)
}

// Is makes it a source.ErrChanged.
func (e *SizeError) Is(target error) bool { return target == source.ErrChanged }

// blob opens its source when it is first read.
type blob struct {
	o Opener

	opening chan struct{} // holds a token while nobody opens

	mu     sync.Mutex // never held while anything is asked
	opened source.Blob
	closed bool
}

// New returns a blob that o opens.
func New(o Opener) source.Blob {
	b := &blob{o: o, opening: make(chan struct{}, 1)}
	b.opening <- struct{}{}
	return b
}

// Size is what the opener says.
func (b *blob) Size() int64 { return b.o.Size }

// Identity is that of the version found, and before that only the size.
func (b *blob) Identity() source.Identity {
	if got, err := b.current(); got != nil && err == nil {
		return source.IdentityOf(got)
	}
	return source.Identity{Size: b.o.Size}
}

// current is the opened blob; nil where it is not opened yet.
func (b *blob) current() (source.Blob, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, os.ErrClosed
	}
	return b.opened, nil
}

func (b *blob) get(ctx context.Context) (source.Blob, error) {
	if got, err := b.current(); got != nil || err != nil {
		return got, err
	}
	select {
	case <-b.opening:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { b.opening <- struct{}{} }()
	if got, err := b.current(); got != nil || err != nil {
		return got, err // somebody else was faster
	}
	got, err := b.o.Open(ctx)
	if err != nil {
		return nil, err
	}
	if got.Size() != b.o.Size {
		err = &SizeError{Size: got.Size(), Want: b.o.Size}
	} else if b.o.Bound != nil {
		err = b.o.Bound(got)
	}
	if err != nil {
		return nil, errors.Join(err, got.Close())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.Join(os.ErrClosed, got.Close())
	}
	b.opened = got
	return got, nil
}

// ReadRange opens the source first where that was not done. A range of a source
// that can be read only from its start is read on from there.
func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	got, err := b.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if off == 0 || !source.IsSequential(got) {
		return got.ReadRange(ctx, off, n)
	}
	r, err := got.ReadRange(ctx, 0, off+n)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, r, off); err != nil {
		return nil, errors.Join(fmt.Errorf("read on to %d: %w", off, err), r.Close())
	}
	return r, nil
}

// Close implements source.Blob.
func (b *blob) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.opened == nil {
		return nil
	}
	return b.opened.Close()
}
