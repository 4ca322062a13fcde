// Package ranged is what the sources over HTTP share: one GET with its time-outs,
// redirects whose last target is remembered, and the checks that compare a response
// with the range that was asked for. It knows no identity of its own, no
// credentials and no second try; those are the sources'.
//
// http.Client is not used: its errors quote URLs with their secrets, and it has
// no memory of redirects.
package ranged

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// Sender sends requests, one response each, without following anything.
type Sender struct {
	Transport http.RoundTripper
	Stall     time.Duration   // how long a body may deliver nothing
	Life      context.Context // its end ends requests and bodies with os.ErrClosed
	// Name is how errors name the server or file at u; nil: source.RedactURL.
	Name func(u *url.URL) string
}

// Send sends req, which ends with ctx. The answer must be finished, refused, or
// its body closed.
func (s Sender) Send(ctx context.Context, req *http.Request) (*Answer, error) {
	name := source.RedactURL
	if s.Name != nil {
		name = s.Name
	}
	g := newGuard(ctx, s.Life, s.Stall)
	resp, err := s.Transport.RoundTrip(req.WithContext(g.ctx))
	if err != nil {
		err = g.explain(err, name(req.URL))
		g.end()
		return nil, err
	}
	body := &body{rc: resp.Body, guard: g, name: name(req.URL), length: -1}
	resp.Body = body
	return &Answer{Response: resp, body: body}, nil
}

// NewRequest is a GET of u, whose user name, password and fragment are left out.
// Header is the request's own from then on.
func NewRequest(u *url.URL, header http.Header) *http.Request {
	plain := *u
	plain.User, plain.Fragment, plain.RawFragment = nil, "", ""
	return &http.Request{
		Method: http.MethodGet, URL: &plain, Host: u.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
}

// Answer is a response whose Body fails when it stalls.
type Answer struct {
	*http.Response
	body *body
}

// Expect sets the length that the body must have: it fails where it is shorter
// or longer.
func (a *Answer) Expect(length int64) { a.body.expect(length, a.ContentLength >= 0) }

// Finish reads what is left of a body that is of no further use, if it is
// short, so that the connection can be used again, and closes it.
func (a *Answer) Finish() error {
	if a.ContentLength <= drainLimit {
		a.body.drain()
	}
	return a.body.Close()
}

// Refuse ends an answer that is not what was asked for, because of err.
func (a *Answer) Refuse(err error) error {
	if errors.Is(err, ErrStatus) {
		err = a.statusError()
	}
	return errors.Join(err, a.Finish())
}
