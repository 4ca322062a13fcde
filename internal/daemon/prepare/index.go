package prepare

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// index is a zTOC as spans.Index. The registry's word is not enough for what readers
// are shown: a wrong window makes wrong bytes, and no digest of a span tells. So
// nothing is decoded by a zTOC before all of it was found to have its digest.
type index struct {
	*soci.Reader
	library *Library
	id      ondemand.ObjectID
	digest  digest.Digest
	remote  source.Blob

	turn chan struct{} // has room for who settles

	mu      sync.Mutex
	kept    source.Blob           // the zTOC's file; nil: not known to be there
	settled int                   // odd: what is kept has its digest; how often it had, and had not any more
	bad     error                 // what was read is not the zTOC, or nothing can be decoded by it
	until   time.Time             // when bad is forgotten; zero: never
	waiting map[*waiting]struct{} // those who wait until it is settled
}

// Size implements spans.Index.
func (x *index) Size() int64 { return x.Spans().Uncompressed }

// Close implements spans.Index.
func (x *index) Close() error { return x.remote.Close() }

// Known implements spans.Index.
func (x *index) Known(off int64) (from, end int64, known bool) { return x.Place(off) }

// Find implements spans.Index. What is kept may be touched while it is in use: then it
// is settled once more.
func (x *index) Find(ctx context.Context, off int64) (spans.Span, error) {
	for again := false; ; again = true {
		times, err := x.settleOnce(ctx)
		if err != nil {
			return spans.Span{}, err
		}
		found, err := x.Covering(ctx, off, off+1)
		if err == nil {
			s := &found[0]
			return spans.Span{From: s.Checkpoint, End: min(s.End, x.Size()), InEnd: s.BlobOff + s.BlobLen, Digest: s.Digest}, nil
		}
		if again || ctx.Err() != nil {
			// It is not wrapped: that a file here has changed says nothing of the source.
			return spans.Span{}, errors.Join(ctx.Err(), fmt.Errorf("read what is kept of zTOC %s: %s: %w", x.digest, err.Error(), ErrDamaged))
		}
		x.unsettle(times)
	}
}

// unsettle has what is kept verified again, unless that was done since times.
func (x *index) unsettle(times int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.settled == times {
		x.settled, x.kept = times+1, nil
	}
}

// ztocBlob is the zTOC.
type ztocBlob struct{ *index }

// Size implements toc.Blob.
func (x ztocBlob) Size() int64 { return x.remote.Size() }

// ReadRange implements toc.Blob.
func (x ztocBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	kept, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	if kept != nil {
		return kept.ReadRange(ctx, off, n)
	}
	return x.remote.ReadRange(ctx, off, n)
}

// open is what is kept, if it is. What cannot be opened is not: it is fetched anew.
func (x *index) open(ctx context.Context) (source.Blob, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept != nil {
		return x.kept, nil
	}
	kept, err := file.Open(ctx, x.library.ztocPath(x.id))
	if err != nil {
		return nil, ctx.Err()
	}
	if kept.Size() != x.remote.Size() {
		return nil, kept.Close() // it is replaced
	}
	x.kept = kept
	return kept, nil
}

// settle reads the zTOC whole, keeps it, and verifies that it and what was read of it
// before belong to its digest; once. toc.ErrDigest: they do not, and nothing is read by
// it from then on, unless it was sent wrongly: that is asked for again after a while.
func (x *index) settle(ctx context.Context) error {
	_, err := x.settleOnce(ctx)
	return err
}

func (x *index) settleOnce(ctx context.Context) (times int, err error) {
	if times, err := x.state(); times%2 == 1 || err != nil {
		return times, err
	}
	defer x.wait(ctx)()
	select {
	case x.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-x.turn }()
	if times, err := x.state(); times%2 == 1 || err != nil {
		return times, err
	}
	err = x.verifyKept(ctx)
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		x.library.suspects.Delete(x.id)
		x.settled++
		return x.settled, nil
	}
	wrong := (*source.WrongError)(nil)
	switch {
	case isAnother(err):
		x.bad = &WrongIndexError{x.digest, err}
		return 0, errors.Join(x.bad, x.library.forget(x.id))
	case errors.As(err, &wrong):
		x.bad, x.until = fmt.Errorf("zTOC %s: %w: %w", x.digest, err, source.ErrNotBytes), time.Now().Add(wrongFor)
		x.library.suspects.Store(x.id, true)
		return 0, x.bad
	}
	return 0, err
}

// isAnother tells whether Verify has found a zTOC that has its digest to be no index, or
// not the one that was read of before.
func isAnother(err error) bool {
	return errors.Is(err, soci.ErrOther) || errors.Is(err, toc.ErrInvalid)
}

// WrongIndexError is that what is shown of a layer was read of an index that is not
// the one that its digest names, or that nothing can be decoded by that one. No byte of
// the layer is given; a mount that is made anew reads the index anew.
type WrongIndexError struct {
	Digest digest.Digest
	Err    error
}

func (e *WrongIndexError) Error() string {
	return fmt.Sprintf("zTOC %s: %v; umount it and mount it again, or mount it with --format scanned", e.Digest, e.Err)
}

// Unwrap is what was found, and source.ErrNotBytes.
func (e *WrongIndexError) Unwrap() []error { return []error{e.Err, source.ErrNotBytes} }

// forget removes what was read of a zTOC that is another. A plan that was made of it
// stays, for who has it mounted, and is complete no more: nothing is mounted by it again.
func (l *Library) forget(id ondemand.ObjectID) error {
	return errors.Join(remove(l.tocPath(id)), remove(l.spansPath(id)), remove(l.ztocPath(id)))
}

// waiting is somebody who waits with a deadline that runs from the last progress.
type waiting struct{ ctx context.Context }

// wait has ctx told of progress until the function that it returns is called.
func (x *index) wait(ctx context.Context) (leave func()) {
	w := &waiting{ctx}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting == nil {
		x.waiting = make(map[*waiting]struct{})
	}
	x.waiting[w] = struct{}{}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.waiting, w)
	}
}

// telling tells those who wait that bytes have come, as ondemand.Progress wants it: not
// before they are a block.
type telling struct {
	*index
	untold int
}

func (t *telling) Write(p []byte) (int, error) {
	if t.untold += len(p); t.untold >= ondemand.BlockSize {
		t.untold = 0
		t.mu.Lock()
		defer t.mu.Unlock()
		for w := range t.waiting {
			ondemand.Progress(w.ctx)
		}
	}
	return len(p), nil
}

// verifyKept keeps the zTOC and verifies it. What was kept before and is damaged, or
// cannot be read, is fetched anew.
func (x *index) verifyKept(ctx context.Context) error {
	fetched, err := x.keep(ctx)
	if err != nil {
		return err
	}
	err = x.Verify(ctx, x.digest.String())
	if fetched || err == nil || isAnother(err) || ctx.Err() != nil {
		return err
	}
	x.mu.Lock()
	x.kept = nil
	x.mu.Unlock()
	if err := remove(x.library.ztocPath(x.id)); err != nil {
		return err
	}
	if _, err := x.keep(ctx); err != nil {
		return err
	}
	return x.Verify(ctx, x.digest.String())
}

func (x *index) state() (settled int, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.until.IsZero() && !time.Now().Before(x.until) {
		x.bad, x.until = nil, time.Time{}
	}
	return x.settled, x.bad
}

// wrongFor is how long nobody is asked again for a zTOC that all have sent wrongly.
const wrongFor = 30 * time.Second

// keep fetches the zTOC to its file, unless it is there.
func (x *index) keep(ctx context.Context) (fetched bool, err error) {
	if kept, err := x.open(ctx); err != nil || kept != nil {
		return false, err
	}
	ctx, refuted := source.WithRefuted(ctx)
	from := &source.Noted{Wrapper: source.Wrapper{Blob: x.remote}}
	return true, refuted.Until(func() error {
		var fetched error
		err := replace(x.library.ztocPath(x.id), func(w io.Writer) error {
			fetched = x.fetch(ctx, from, w)
			return fetched
		})
		if inner := errors.Unwrap(err); fetched != nil && inner != nil {
			err = fmt.Errorf("fetch the zTOC: %w", inner) // the file that it is written to is not what fails
		}
		return err
	}, func() (bool, error) { return from.Refute(), nil })
}

// fetch writes the zTOC to w.
func (x *index) fetch(ctx context.Context, from source.Blob, w io.Writer) (err error) {
	body, err := from.ReadRange(ctx, 0, from.Size())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum, &telling{index: x}), body); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != x.digest.String() {
		return &source.WrongError{Err: fmt.Errorf("it is %s: %w", got, toc.ErrDigest)}
	}
	return nil
}

func remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
