// Package source holds the seam to where a blob's bytes come from.
//
// A Blob is immutable bytes of a known size, read by range. Each kind of
// source is a leaf package (httprange, file, mem) that imports only this one;
// leaves never import each other. Behaviour that holds for every source
// (retry, a limit on concurrent requests, tracing) is added by wrapping a Blob
// in another Blob, never inside a leaf.
//
// Errors that a caller acts on are the sentinels below; a leaf wraps them with
// the operation and the source's redacted name. Nothing here logs.
package source

import (
	"context"
	"errors"
	"io"
	"time"
)

// Blob is an immutable sequence of bytes somewhere else.
//
// All methods may be called concurrently. The identity of the bytes is fixed
// for the life of the value: when the source offers other bytes under the
// same name, every later read fails with ErrChanged and never returns them.
type Blob interface {
	// Size is the number of bytes of the whole blob. It never changes and
	// does no input or output.
	Size() int64

	// ReadRange returns a reader of exactly n bytes from off, 0 <= off,
	// 0 < n, off+n <= Size; anything else is an error before any request
	// is made. The reader ends with io.EOF only after n bytes; a source
	// that ends early makes it fail with an error that wraps
	// io.ErrUnexpectedEOF. Cancelling ctx ends a read in progress with an
	// error that wraps the context's. The caller closes the reader, at any
	// point, also while a read is in progress, which frees what it holds; a
	// read after that fails.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)

	// Close frees what the blob holds. Readers that are open end with an
	// error or with their exact bytes. ReadRange fails from then on, with an
	// error that wraps os.ErrClosed. It may be called more than once.
	Close() error
}

// Sequential is implemented by blobs that can be read only from the start and
// in order, such as a file on a server without range requests. Use IsSequential.
type Sequential interface {
	// Sequential is true where ReadRange accepts offset 0 only.
	Sequential() bool
}

// IsSequential tells whether b can be read from offset 0 only. A wrapper
// forwards the answer of what it wraps.
func IsSequential(b Blob) bool {
	s, ok := b.(Sequential)
	return ok && s.Sequential()
}

// Aligned is implemented by blobs whose bytes come in pieces that can only be
// fetched whole, such as the chunks of a compressed layer. Use Align.
type Aligned interface {
	// Align is [off, off+n) widened to the least range that costs no more
	// to read. It does no input or output.
	Align(off, n int64) (int64, int64)
}

// Align is [off, off+n) as b would rather be asked for it.
func Align(b Blob, off, n int64) (int64, int64) {
	if a, ok := b.(Aligned); ok {
		return a.Align(off, n)
	}
	return off, n
}

// Parted is implemented by blobs whose bytes come from several places, each of
// which may fail while the others do not. Use Part.
type Parted interface {
	// Part is the range around off that comes from one place. It does no input
	// or output, and 0 <= off < Size.
	Part(off int64) (from, n int64)
}

// Part is the range around off that fails or comes together: of most blobs all.
func Part(b Blob, off int64) (from, n int64) {
	if p, ok := b.(Parted); ok {
		return p.Part(off)
	}
	return 0, b.Size()
}

// Readied is implemented by blobs that have to read something else before they know
// how their bytes come, such as an index. Use Ready.
type Readied interface {
	// Ready returns once ReadRange of [off, off+n) needs nothing else and Align
	// of it is exact. 0 <= off, 0 < n, off+n <= Size.
	Ready(ctx context.Context, off, n int64) error
}

// Ready makes b ready for [off, off+n); most blobs always are.
func Ready(ctx context.Context, b Blob, off, n int64) error {
	if r, ok := b.(Readied); ok {
		return r.Ready(ctx, off, n)
	}
	return nil
}

// Identity says which bytes a source had when it was opened, so that a later
// opening can tell whether it has the same ones.
type Identity struct {
	// Size in bytes.
	Size int64 `json:"size"`
	// Validator is what names this version, in words of its kind of source:
	// for HTTP a strong ETag, a weak one (with its W/ prefix) or
	// "last-modified: " and the header's value. Empty where the source offers none: such bytes are not recognised
	// again by a later opening.
	Validator string `json:"validator,omitempty"`
}

// Identified is implemented by blobs that know their Identity.
type Identified interface {
	Identity() Identity
}

// Wrapper is what a Blob that adds behaviour to another one embeds: it passes
// everything on, the optional interfaces included.
type Wrapper struct{ Blob }

// Sequential is the answer of the wrapped blob.
func (w Wrapper) Sequential() bool { return IsSequential(w.Blob) }

// Align is what the wrapped blob says.
func (w Wrapper) Align(off, n int64) (int64, int64) { return Align(w.Blob, off, n) }

// Part is what the wrapped blob says.
func (w Wrapper) Part(off int64) (int64, int64) { return Part(w.Blob, off) }

// Identity is the one of the wrapped blob.
func (w Wrapper) Identity() Identity { return IdentityOf(w.Blob) }

// IdentityOf returns b's identity, or one with only the size.
func IdentityOf(b Blob) Identity {
	if i, ok := b.(Identified); ok {
		return i.Identity()
	}
	return Identity{Size: b.Size()}
}

// Errors that callers tell apart with errors.Is.
var (
	// ErrChanged: the source now has other bytes under the same name.
	ErrChanged = errors.New("source changed since it was opened")
	// ErrNotFound: the source says that there is no such blob (404, 410).
	ErrNotFound = errors.New("not found")
	// ErrDenied: the source refuses access (401, 403), also after
	// credentials or a redirect were refreshed.
	ErrDenied = errors.New("access denied")
	// ErrBusy: the source asks for fewer requests (429, 503) and still
	// does after the retries that the budget allows.
	ErrBusy = errors.New("source is overloaded")
	// ErrUnreachable: no answer from the source: name resolution, connection,
	// time-out.
	ErrUnreachable = errors.New("source unreachable")
	// ErrSizeUnknown: the source does not tell how large the blob is.
	ErrSizeUnknown = errors.New("size unknown")
	// ErrNotBytes: what the source sent is not what was asked for: a wrong
	// Content-Range, a body of the wrong length, a content encoding.
	ErrNotBytes = errors.New("source sent something else than the bytes asked for")
	// ErrRange: the caller asked for a range that the blob cannot have, or
	// that a sequential blob cannot give.
	ErrRange = errors.New("range outside the blob")
)

// Temporary tells whether trying err's operation again can help. Errors say so
// themselves through a method Temporary() bool. The end of a context is never
// temporary, although context.DeadlineExceeded has that method.
func Temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && any(t) != any(context.DeadlineExceeded) && t.Temporary()
}

// RetryDelay is how long the source asks to be left alone before the next
// attempt; 0 where err says nothing about it. Errors say so themselves through
// a method RetryDelay() time.Duration.
func RetryDelay(err error) time.Duration {
	var d interface{ RetryDelay() time.Duration }
	if !errors.As(err, &d) {
		return 0
	}
	return d.RetryDelay()
}

// Ready is what the wrapped blob does.
func (w Wrapper) Ready(ctx context.Context, off, n int64) error { return Ready(ctx, w.Blob, off, n) }
