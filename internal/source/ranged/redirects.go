package ranged

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
)

// maxRedirects is how many redirects one request follows, as net/http does.
const maxRedirects = 10

// Redirects asks for one file and follows redirects. It remembers the last
// target, so that not every range pays for the redirect; when the target refuses
// (a signed URL that expired) the origin is asked once more.
type Redirects struct {
	// Origin asks for the file where it is known under its own name.
	Origin func(ctx context.Context, h http.Header) (*Answer, error)
	// Target asks for it at u, where a redirect led. Credentials of the
	// origin are not for other hosts.
	Target func(ctx context.Context, u *url.URL, h http.Header) (*Answer, error)

	target atomic.Pointer[url.URL] // where the origin redirected to last; nil: unknown
}

// Forget makes the next request ask the origin.
func (r *Redirects) Forget() { r.target.Store(nil) }

// Get asks with the headers h, from the remembered target where there is one.
func (r *Redirects) Get(ctx context.Context, h http.Header) (*Answer, error) {
	target := r.target.Load()
	if target == nil {
		return r.follow(ctx, h)
	}
	a, err := r.Target(ctx, target, h)
	switch {
	case err == nil && !refreshes(a.StatusCode):
		return a, nil
	case err == nil:
		if err := a.Finish(); err != nil {
			return nil, err
		}
	case ctx.Err() != nil, errors.Is(err, os.ErrClosed):
		return nil, err
	}
	// Expired, gone or broken: whatever the origin says now is the answer.
	r.target.CompareAndSwap(target, nil)
	return r.follow(ctx, h)
}

func (r *Redirects) follow(ctx context.Context, h http.Header) (*Answer, error) {
	a, err := r.Origin(ctx, h)
	for range maxRedirects {
		if err != nil || !isRedirect(a.StatusCode) {
			return a, err
		}
		next, bad := location(a.Response)
		if err := errors.Join(bad, a.Finish()); err != nil {
			return nil, err
		}
		a, err = r.Target(ctx, next, h)
		if err == nil && (a.StatusCode == http.StatusOK || a.StatusCode == http.StatusPartialContent) {
			r.target.Store(next)
		}
	}
	if err == nil && isRedirect(a.StatusCode) {
		err = fmt.Errorf("%w: more than %d redirects", source.ErrNotBytes, maxRedirects)
		return nil, errors.Join(err, a.Finish())
	}
	return a, err
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// refreshes tells whether an answer of a remembered redirect target may mean
// that it is out of date: expired signatures are 403, 401 or (Google Cloud
// Storage) 400, moved files 404 or 410, or the target redirects itself. A target
// that is ill (5xx) may have been replaced by another.
func refreshes(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden,
		http.StatusNotFound, http.StatusGone:
		return true
	}
	return isRedirect(status) || status >= 500
}

// location is where resp redirects to.
func location(resp *http.Response) (*url.URL, error) {
	u := resp.Request.URL
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
