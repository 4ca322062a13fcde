package httprange

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"

	"github.com/lacunafs/lacuna/internal/source"
)

// maxRedirects is how many redirects one request follows, as net/http does.
const maxRedirects = 10

// answer is a response and who gave it. Its Body is body.
type answer struct {
	*http.Response
	body *body
}

// finish reads what is left of a body that is of no further use, if it is
// short, so that the connection can be used again, and closes it.
func (a *answer) finish() error {
	if a.ContentLength <= drainLimit {
		a.body.drain()
	}
	return a.body.Close()
}

// refuse ends an answer that is not what was asked for, because of err.
func (a *answer) refuse(err error) error {
	if errors.Is(err, errStatus) {
		err = statusError(a.Response)
	}
	return errors.Join(err, a.finish())
}

// get sends one GET and follows redirects, from the remembered target where
// there is one. http.Client is not used: its errors quote URLs with their
// secrets, and it has no memory of redirects.
func (b *blob) get(ctx context.Context, h http.Header) (*answer, error) {
	if target := b.target.Load(); target != nil {
		a, err := b.send(ctx, target, h)
		switch {
		case err == nil && !refreshes(a.StatusCode):
			if a.StatusCode >= 500 {
				b.target.CompareAndSwap(target, nil) // the original may know a better one next time
			}
			return a, nil
		case err == nil:
			if err := a.finish(); err != nil {
				return nil, err
			}
		case ctx.Err() != nil, b.life.Err() != nil:
			return nil, err
		}
		// Expired or gone: whatever the original says now is the answer.
		b.target.CompareAndSwap(target, nil)
	}
	return b.follow(ctx, h)
}

func (b *blob) follow(ctx context.Context, h http.Header) (*answer, error) {
	u := b.url
	for range maxRedirects {
		a, err := b.send(ctx, u, h)
		if err != nil {
			return nil, err
		}
		if !redirects(a.StatusCode) {
			if u != b.url && (a.StatusCode == http.StatusOK || a.StatusCode == http.StatusPartialContent) {
				b.target.Store(u)
			}
			return a, nil
		}
		next, err := location(a.Response, u)
		if err := errors.Join(err, a.finish()); err != nil {
			return nil, err
		}
		u = next
	}
	return nil, fmt.Errorf("%w: more than %d redirects", source.ErrNotBytes, maxRedirects)
}

func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// refreshes tells whether an answer of a remembered redirect target may mean
// that it is out of date: expired signatures are 403, 401 or (Google Cloud
// Storage) 400, moved files 404 or 410, or the target redirects itself.
func refreshes(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden,
		http.StatusNotFound, http.StatusGone:
		return true
	}
	return redirects(status)
}

// location is where resp, an answer of u, redirects to.
func location(resp *http.Response, u *url.URL) (*url.URL, error) {
	next, err := u.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil, resp.Header.Get("Location") == "":
		// The text is left out: it is a URL and may hold secrets.
		return nil, fmt.Errorf("%w: redirect %d to no valid URL", source.ErrNotBytes, resp.StatusCode)
	case next.Scheme != "http" && next.Scheme != "https", next.Hostname() == "":
		return nil, fmt.Errorf("%w: redirect to %s", source.ErrNotBytes, source.RedactURL(next))
	case u.Scheme == "https" && next.Scheme == "http":
		return nil, fmt.Errorf("%w: redirect from https to %s", source.ErrNotBytes, source.RedactURL(next))
	}
	next.Fragment, next.RawFragment = "", ""
	return next, nil
}

// send sends one GET to u, without following anything.
func (b *blob) send(ctx context.Context, u *url.URL, h http.Header) (*answer, error) {
	g := newGuard(ctx, b.life, b.opts.Stall)
	resp, err := b.transport.RoundTrip(b.newRequest(g.ctx, u, h))
	if err != nil {
		err = g.explain(err, source.RedactURL(u))
		g.end()
		return nil, err
	}
	body := &body{rc: resp.Body, guard: g, name: source.RedactURL(u), length: -1}
	resp.Body = body
	return &answer{Response: resp, body: body}, nil
}

func (b *blob) newRequest(ctx context.Context, u *url.URL, h http.Header) *http.Request {
	header := http.Header{}
	if u.Scheme == b.url.Scheme && u.Host == b.url.Host {
		if b.auth != "" {
			header.Set("Authorization", b.auth)
		}
		for name, values := range b.opts.Header {
			header[http.CanonicalHeaderKey(name)] = values
		}
		header.Del("Range")
		header.Del("If-Range")
	} else if auth := basicAuth(u); auth != "" {
		header.Set("Authorization", auth)
	}
	maps.Copy(header, h)
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", b.opts.UserAgent)
	req := &http.Request{
		Method: http.MethodGet, URL: plain(u), Host: u.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return req.WithContext(ctx)
}

// plain is u without user name, password and fragment.
func plain(u *url.URL) *url.URL {
	p := *u
	p.User, p.Fragment, p.RawFragment = nil, "", ""
	return &p
}

func basicAuth(u *url.URL) string {
	if u.User == nil {
		return ""
	}
	password, _ := u.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
}
