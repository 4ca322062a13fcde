// Package origins makes one blob of several that have the same bytes, such as a
// layer that lies in two registries. A range is asked of one origin after the other
// until one gives it; one that failed is asked last for a while. Origins come and
// go while the blob is read.
//
// That they have the same bytes is the caller's to know and the reader's to
// verify: nothing is compared here but their size. A reader that finds bytes wrong
// refutes them, and another origin is asked.
package origins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// restTime is how long an origin that failed is asked last.
const restTime = 30 * time.Second

// Blob is what all origins have. Without any it cannot be read.
type Blob struct {
	identity source.Identity

	mu      sync.Mutex // never held while anything is asked
	origins []*origin  // in the order in which they were added
	closed  bool
}

type origin struct {
	source.Blob
	place     string
	restUntil time.Time // under Blob.mu
	removed   bool      // the same
}

// New makes a blob of the given identity, without an origin.
func New(id source.Identity) *Blob { return &Blob{identity: id} }

// Add adds an origin, which is the blob's from then on, also where that fails. Of
// those that have the same place one stands for all when it fails: they would ask
// the same server the same again.
func (b *Blob) Add(from source.Blob, place string) error {
	err := fmt.Errorf("add an origin: it has %d bytes, and should have %d: %w", from.Size(), b.identity.Size, source.ErrChanged)
	if from.Size() == b.identity.Size {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.closed {
			b.origins = append(b.origins, &origin{Blob: from, place: place})
			return nil
		}
		err = fmt.Errorf("add an origin: %w", os.ErrClosed)
	}
	return errors.Join(err, from.Close())
}

// Remove closes an origin. What is being read through it goes on through another.
func (b *Blob) Remove(from source.Blob) error {
	b.mu.Lock()
	for n, o := range b.origins {
		if o.Blob == from {
			o.removed = true
			b.origins = slices.Delete(b.origins, n, n+1)
			break
		}
	}
	b.mu.Unlock()
	return from.Close()
}

// Size implements source.Blob.
func (b *Blob) Size() int64 { return b.identity.Size }

// Identity is what New was told.
func (b *Blob) Identity() source.Identity { return b.identity }

// Sequential is true where no origin has ranges.
func (b *Blob) Sequential() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.origins) > 0 && !slices.ContainsFunc(b.origins, func(o *origin) bool { return !source.IsSequential(o.Blob) })
}

// Close closes all origins.
func (b *Blob) Close() error {
	b.mu.Lock()
	b.closed = true
	all := b.origins
	b.origins = nil
	b.mu.Unlock()
	var errs []error
	for _, o := range all {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

// giver is an origin's place in a source.Refuted.
type giver struct {
	b     *Blob
	place string
}

// next is the origin to ask after those of the places in failed did not give a range
// from off, and those that are refuted gave wrong bytes; nil: there is none.
func (b *Blob) next(off int64, failed []string, refuted *source.Refuted) (*origin, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, os.ErrClosed
	}
	var best *origin
	now := time.Now()
	for _, o := range b.origins {
		switch {
		case slices.Contains(failed, o.place), refuted.Has(giver{b, o.place}), off > 0 && source.IsSequential(o.Blob):
		case best == nil, best.restUntil.After(now) && o.restUntil.Before(best.restUntil):
			best = o
		}
	}
	return best, nil
}

// failed notes that an origin did not give what was asked of it, and tells whether
// there is one to go on with, and whether it was its own fault.
func (b *Blob) failed(o *origin) (others, fault bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, other := range b.origins {
		if other.place != o.place {
			others = true
		} else if !o.removed {
			other.restUntil = time.Now().Add(restTime)
		}
	}
	return !b.closed && (others || o.removed && len(b.origins) > 0), !o.removed
}

// ReadRange implements source.Blob.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, err
	}
	var places []string
	var failed allFailed
	refuted := source.RefutedIn(ctx)
	for {
		o, err := b.next(off, places, refuted)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read [%d,+%d): %w", off, n, err)
		case o == nil && len(failed) == 1:
			return nil, failed[0]
		case o == nil && len(failed) > 1:
			return nil, failed
		case o == nil && refuted.Names() != "":
			return nil, fmt.Errorf("read [%d,+%d): %w: nobody is left to ask but %s", off, n, source.ErrNotBytes, refuted.Names())
		case o == nil:
			return nil, fmt.Errorf("read [%d,+%d): %w: no origin is left that has it", off, n, source.ErrNotFound)
		}
		body, err := o.ReadRange(ctx, off, n)
		if err == nil {
			return &reader{ReadCloser: body, ctx: ctx, b: b, o: o, off: off}, nil
		}
		if end := ctx.Err(); end != nil {
			return nil, fmt.Errorf("%w: %w", end, err)
		}
		if _, fault := b.failed(o); fault {
			places, failed = append(places, o.place), append(failed, err)
		}
	}
}

// reader is a body whose failure makes another origin be asked.
type reader struct {
	io.ReadCloser
	ctx context.Context
	b   *Blob
	o   *origin
	off int64
}

// Read fails with a temporary error where another origin may give what is left.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err == nil || errors.Is(err, io.EOF) || r.ctx.Err() != nil {
		return n, err
	}
	if others, _ := r.b.failed(r.o); others {
		err = &elsewhereError{err}
	}
	return n, err
}

// Refute implements source.Refutable. An origin that has the bytes from several hosts
// is blamed when none of them is left.
func (r *reader) Refute() bool {
	if source.Refute(r.ReadCloser) {
		return true
	}
	refuted := source.RefutedIn(r.ctx)
	refuted.Add(giver{r.b, r.o.place}, "")
	r.b.failed(r.o)
	next, err := r.b.next(r.off, nil, refuted)
	return err == nil && refuted != nil && next != nil
}

// elsewhereError is what one origin fails with where there are others.
type elsewhereError struct{ err error }

func (e *elsewhereError) Error() string   { return e.err.Error() }
func (e *elsewhereError) Unwrap() error   { return e.err }
func (e *elsewhereError) Temporary() bool { return true }

// allFailed is what each of several origins failed with.
type allFailed []error

func (e allFailed) Error() string {
	text := e[0].Error()
	for _, err := range e[1:] {
		text += "; " + err.Error()
	}
	return text
}

func (e allFailed) Unwrap() []error { return e }

// Temporary is true where one of them may do better later.
func (e allFailed) Temporary() bool { return slices.ContainsFunc(e, source.Temporary) }

// RetryDelay is the shortest of those that may.
func (e allFailed) RetryDelay() time.Duration {
	shortest := time.Duration(-1)
	for _, err := range e {
		if d := source.RetryDelay(err); source.Temporary(err) && (shortest < 0 || d < shortest) {
			shortest = d
		}
	}
	return max(shortest, 0)
}
