// Package httprange is the source of a file behind HTTP or HTTPS.
//
// A blob is bound to one version of the file: to its size and, where the
// server gives one, its validator (ETag, else Last-Modified). Every response is
// compared with what was asked and with that version before a byte of it is
// handed on: status, Content-Range, Content-Length, Content-Encoding and
// validator. What does not fit is an error; this package repairs nothing and
// tries nothing twice (package retry does), with two exceptions. A redirect
// target is remembered, so that not every range pays for the redirect, and when
// it refuses (a signed URL that expired) the original URL is asked once more.
// And a server that answers If-Range with the whole of an unchanged file is asked
// without it from then on, which costs no safety.
//
// Nothing waits for ever: connecting, the TLS handshake, the wait for a
// response and a body that makes no progress each have a time-out. Only the wait
// for one of ConnsPerHost connections is bounded by the caller's context alone.
//
// URLs appear in errors as source.Redact shows them.
package httprange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// StatusError is an answer that is neither the bytes nor a redirect.
type StatusError = ranged.StatusError

type blob struct {
	url        *url.URL // as given, without user name and password
	auth       string   // Authorization header for url's host, or empty
	opts       Options
	transport  *http.Transport
	own        bool // transport is this blob's alone
	id         source.Identity
	sequential bool

	redirects ranged.Redirects
	noIfRange atomic.Bool // the server does not understand If-Range

	life context.Context // ends when the blob is closed
	end  context.CancelFunc
}

// Open asks the server for the size and version of the file at rawURL and
// returns a blob bound to them. User name and password in the URL become basic
// authentication. The blob is sequential where the server has no range requests.
func Open(ctx context.Context, rawURL string, opts Options) (source.Blob, error) {
	b, err := newBlob(rawURL, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", source.Redact(rawURL), err)
	}
	if err := b.learn(ctx); err != nil {
		return nil, errors.Join(b.inContext("open", err), b.Close())
	}
	return b, nil
}

// Reopen returns a blob of the file at rawURL as it was when id was taken,
// without any request; opts.Sequential says whether it was sequential then. A
// file that has changed since fails each read with source.ErrChanged. Where
// id has no validator only the size can tell, so reads may give another version's bytes.
func Reopen(rawURL string, id source.Identity, opts Options) (source.Blob, error) {
	b, err := newBlob(rawURL, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", source.Redact(rawURL), err)
	}
	b.id, b.sequential = id, opts.Sequential
	return b, nil
}

func newBlob(rawURL string, opts Options) (*blob, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, errors.New("not a URL") // err would quote it, secrets included
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme %q: only http and https are supported", u.Scheme)
	case u.Hostname() == "":
		return nil, errors.New("URL without a host")
	}
	b := &blob{opts: opts.withDefaults(), transport: opts.Transport}
	b.auth = basicAuth(u)
	b.url = plain(u)
	if b.transport == nil {
		b.transport, b.own = NewTransport(opts), true
	}
	b.life, b.end = context.WithCancel(context.Background())
	b.redirects.Origin = func(ctx context.Context, h http.Header) (*ranged.Answer, error) { return b.send(ctx, b.url, h) }
	b.redirects.Target = b.send
	return b, nil
}

// name is the blob's URL as messages show it.
func (b *blob) name() string { return source.RedactURL(b.url) }

func (b *blob) Size() int64 { return b.id.Size }

// Sequential tells whether the server has no range requests.
func (b *blob) Sequential() bool { return b.sequential }

// Identity is the size and validator that each response is compared with.
func (b *blob) Identity() source.Identity { return b.id }

// Close ends open readers and, where the connections are the blob's own, closes them.
func (b *blob) Close() error {
	b.end()
	if b.own {
		b.transport.CloseIdleConnections()
	}
	return nil
}

func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := b.readRange(ctx, off, n)
	if err != nil {
		return nil, b.inContext(fmt.Sprintf("read [%d,+%d) of", off, n), err)
	}
	return source.Exact(ctx, body, n), nil
}

func (b *blob) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, err
	}
	if b.life.Err() != nil {
		return nil, os.ErrClosed
	}
	if b.sequential {
		return b.request(ctx, ranged.Want{Off: off, N: n})
	}
	w := ranged.Want{Off: off, N: n, Ranged: true, IfRange: ranged.IsStrong(b.id.Validator) && !b.noIfRange.Load()}
	body, err := b.request(ctx, w)
	if !errors.Is(err, ranged.ErrIfRangeIgnored) {
		return body, err
	}
	w.IfRange = false
	body, err = b.request(ctx, w)
	if err == nil {
		b.noIfRange.Store(true)
	}
	return body, err
}

// request sends one request and returns the body of its response, checked so
// far that its first w.N bytes are those of the range.
func (b *blob) request(ctx context.Context, w ranged.Want) (io.ReadCloser, error) {
	resp, err := b.redirects.Get(ctx, w.Header(b.id))
	if err != nil {
		return nil, err
	}
	length, err := ranged.CheckResponse(resp.Response, w, b.id)
	if err != nil {
		b.redirects.Forget() // a redirect to the wrong file is asked for anew
		return nil, resp.Refuse(err)
	}
	resp.Expect(length)
	return resp.Body, nil
}

// inContext adds to err what was done, and the blob's URL unless err names the
// URL that answered, which may be where the blob's redirects to.
func (b *blob) inContext(what string, err error) error {
	var status *StatusError
	var request *ranged.RequestError
	if errors.As(err, &status) || errors.As(err, &request) {
		return fmt.Errorf("%s %w", what, err)
	}
	return fmt.Errorf("%s %s: %w", what, b.name(), err)
}
