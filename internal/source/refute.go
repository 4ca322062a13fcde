package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Refutable is implemented by bodies that know who gave their bytes. Use Refute.
type Refutable interface {
	// Refute says that bytes which were read of the body are not the blob's. Who gave
	// them is asked last for a while, and is added to the Refuted that the context of
	// ReadRange has, so that a ReadRange with that context asks somebody else. It is
	// true where that can give other bytes. It may be called after Close, and not
	// during a Read.
	Refute() bool
}

// Refute refutes what was read of a body. Most bodies' bytes are had nowhere else.
func Refute(body any) bool {
	r, ok := body.(Refutable)
	return ok && r.Refute()
}

// WrongError is the error of bytes that came and are not the blob's, as a digest or a
// decoder tells.
type WrongError struct {
	Err error
	// Unsure: the blob itself may be wrong. Nobody is named then.
	Unsure bool
}

// Error says what was found.
func (e *WrongError) Error() string { return e.Err.Error() }

// Unwrap is what was found.
func (e *WrongError) Unwrap() error { return e.Err }

// Noted is a blob whose bodies can be refuted together, by who has to read several of
// them before it can tell. It is for one goroutine.
type Noted struct {
	Wrapper
	bodies []*notedBody
	failed bool
}

type notedBody struct {
	io.ReadCloser
	b *Noted
}

// ReadRange implements Blob.
func (n *Noted) ReadRange(ctx context.Context, off, length int64) (io.ReadCloser, error) {
	rc, err := n.Wrapper.ReadRange(ctx, off, length)
	if err != nil {
		n.failed = true
		return nil, err
	}
	body := &notedBody{rc, n}
	n.bodies = append(n.bodies, body)
	return body, nil
}

func (b *notedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.b.failed = b.b.failed || err != nil && !errors.Is(err, io.EOF)
	return n, err
}

// Failed tells whether a request failed, or a body that was not refuted.
func (n *Noted) Failed() bool { return n.failed }

// Refute refutes all bodies.
func (n *Noted) Refute() (again bool) {
	for _, body := range n.bodies {
		again = Refute(body.ReadCloser)
	}
	n.bodies, n.failed = nil, false
	return again
}

// Refuted is who gave wrong bytes of what a reader reads. The zero value is nobody; a nil
// one stays that.
type Refuted struct {
	mu    sync.Mutex
	who   map[any]struct{}
	names []string
}

type refutedKey struct{}

// WithRefuted returns a context for ReadRange in which it is noted who is refuted. The
// reader that has it is for one goroutine.
func WithRefuted(ctx context.Context) (context.Context, *Refuted) {
	r := &Refuted{}
	return context.WithValue(ctx, refutedKey{}, r), r
}

// RefutedIn is what WithRefuted made, nil where ctx has none.
func RefutedIn(ctx context.Context) *Refuted {
	r, _ := ctx.Value(refutedKey{}).(*Refuted)
	return r
}

// Add adds who, and the name that messages have for it; empty: none.
func (r *Refuted) Add(who any, name string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.who == nil {
		r.who = make(map[any]struct{})
	}
	r.who[who] = struct{}{}
	if name != "" && !slices.Contains(r.names, name) {
		r.names = append(r.names, name)
	}
}

// Has tells whether who was added.
func (r *Refuted) Has(who any) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.who[who]
	return ok
}

// Names are those of who was added, in the order in which they were.
func (r *Refuted) Names() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.names, ", ")
}

func (r *Refuted) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.who, r.names = nil, nil
}

// maxUnblamed bounds how often a part is asked for again whose wrong bytes nobody can be
// blamed for, because they came in several answers.
const maxUnblamed = 2

// Until calls read, which reads and verifies one part of a blob, until it ends with
// something else than a WrongError, and refute before it is called again: it refutes the
// body, and tells whether another one can be better. Nobody is asked for the part again
// who gave wrong bytes of it.
func (r *Refuted) Until(read func() error, refute func() (bool, error)) error {
	r.clear()
	unblamed := 0
	for {
		err := read()
		var wrong *WrongError
		if !errors.As(err, &wrong) {
			return r.explain(err)
		}
		before := r.count()
		again, closing := refute()
		if r.count() == before {
			unblamed++
		}
		if !again || unblamed > maxUnblamed || closing != nil {
			return r.explain(errors.Join(err, closing))
		}
	}
}

func (r *Refuted) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.who)
}

// explain says who was refuted.
func (r *Refuted) explain(err error) error {
	var wrong *WrongError
	unsure := errors.As(err, &wrong) && wrong.Unsure
	if names := r.Names(); err != nil && names != "" && !unsure {
		return fmt.Errorf("%w (wrong bytes came from %s)", err, names)
	}
	return err
}
