package oci

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/auth"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// host is one place that has a repository: the registry itself or a mirror.
type host struct {
	api           url.URL // root of its API; the scheme is scheme's business
	pull, resolve bool
	header        http.Header // of hosts.toml
	query         string      // tells a mirror which registry is meant
	userAgent     string
	transport     *http.Transport
	stall         time.Duration
	session       *auth.Session
	rest          rest

	// guess: nothing says whether the host, on loopback, has encryption.
	// It is asked with it first and remembered to be plain if it has none.
	guess bool
	plain atomic.Bool
}

// rest says until when something that failed is asked last.
type rest struct{ until atomic.Int64 }

// restTime is how long.
const restTime = 30 * time.Second

func (r *rest) begin()       { r.until.Store(time.Now().Add(restTime).UnixNano()) }
func (r *rest) active() bool { return r.until.Load() > time.Now().UnixNano() }

// url is the address of a path below the API's root, which may have a query.
func (h *host) url(path string) *url.URL {
	u := h.api
	path, query, _ := strings.Cut(path, "?")
	u.Path += path
	u.RawQuery = strings.Trim(query+"&"+h.query, "&")
	if h.guess && !h.plain.Load() {
		u.Scheme = "https"
	}
	return &u
}

// isMirror tells whether it is another than the registry itself.
func (h *host) isMirror() bool { return h.query != "" }

// insecure tells whether the host is spoken to without encryption.
func (h *host) insecure() bool { return h.url("").Scheme == "http" }

func (h *host) sender(life context.Context) ranged.Sender {
	return ranged.Sender{Transport: h.transport, Stall: h.stall, Life: life, Name: hostName}
}

// hostName is all that messages say of a URL: the rest of it is long or secret.
func hostName(u *url.URL) string { return u.Host }

// get asks the host for path and sees to its login. It follows nothing.
func (h *host) get(ctx, life context.Context, path string, header http.Header) (*ranged.Answer, error) {
	return h.ask(ctx, life, path, request{http.MethodGet, header, nil})
}

// request is what a host is asked besides a path. The body may be sent several times.
type request struct {
	method string
	header http.Header
	body   []byte
}

// ask is get for any request.
func (h *host) ask(ctx, life context.Context, path string, q request) (*ranged.Answer, error) {
	for try := 0; ; try++ {
		authorization, number, err := h.session.Authorization(ctx)
		if err != nil {
			return nil, err
		}
		u := h.url(path)
		a, err := h.send(ctx, life, u, q, authorization)
		if err != nil {
			if h.guess && u.Scheme == "https" && hasNoTLS(u, err) {
				h.plain.Store(true)
				try--
				continue
			}
			return nil, err
		}
		if a.StatusCode != http.StatusUnauthorized && a.StatusCode != http.StatusForbidden {
			h.session.Accepted(number)
			return a, nil
		}
		again := false
		if try == 0 {
			again, err = h.session.Renew(ctx, number, a.Response)
		}
		if err == nil && !again {
			wait := h.session.Patience(number, a.Response)
			if wait == 0 {
				return a, nil
			}
			return nil, &laterError{a.Refuse(ranged.ErrStatus), wait}
		}
		if err := errors.Join(err, a.Finish()); err != nil {
			return nil, err
		}
	}
}

// laterError is a refusal that a new token may end.
type laterError struct {
	err  error
	wait time.Duration
}

func (e *laterError) Error() string             { return e.err.Error() + " to a new token" }
func (e *laterError) Unwrap() error             { return e.err }
func (e *laterError) Temporary() bool           { return true }
func (e *laterError) RetryDelay() time.Duration { return e.wait }

// send sends one request to u at the host itself.
func (h *host) send(ctx, life context.Context, u *url.URL, q request, authorization string) (*ranged.Answer, error) {
	req := ranged.NewRequest(u, h.headers(q.header, authorization))
	req.Method = q.method
	if q.body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
	}
	return h.sender(life).Send(ctx, req)
}

// headers are those of a request to the host itself.
func (h *host) headers(header http.Header, authorization string) http.Header {
	all := http.Header{}
	if authorization != "" {
		all.Set("Authorization", authorization)
	}
	maps.Copy(all, h.header)
	maps.Copy(all, header)
	return h.finish(all)
}

// target asks for u, where the host has redirected to. Elsewhere nobody is to
// see who asks.
func (h *host) target(ctx, life context.Context, u *url.URL, header http.Header) (*ranged.Answer, error) {
	if !h.isOwn(u) {
		return h.sender(life).Send(ctx, ranged.NewRequest(u, h.finish(header.Clone())))
	}
	authorization, _, err := h.session.Authorization(ctx)
	if err != nil {
		return nil, err
	}
	return h.send(ctx, life, u, request{http.MethodGet, header, nil}, authorization)
}

// isOwn tells whether u is at the host itself, which may see who asks.
func (h *host) isOwn(u *url.URL) bool {
	own := h.url("")
	return u.Scheme == own.Scheme && u.Host == own.Host
}

func (h *host) finish(header http.Header) http.Header {
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", h.userAgent)
	return header
}

// redirects asks the host for path and follows where it leads.
func (h *host) redirects(life context.Context, r *ranged.Redirects, path string) {
	r.Origin = func(ctx context.Context, header http.Header) (*ranged.Answer, error) {
		return h.get(ctx, life, path, header)
	}
	r.Target = func(ctx context.Context, u *url.URL, header http.Header) (*ranged.Answer, error) {
		return h.target(ctx, life, u, header)
	}
}

// hasNoTLS tells whether err, of a request to u, is that of a server without
// encryption, or of nobody at the port of https.
func hasNoTLS(u *url.URL, err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) ||
		u.Port() == "" && errors.Is(err, syscall.ECONNREFUSED)
}

func isLoopback(hostport string) bool {
	name := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// ill tells whether err says something about the whole host and not about
// what it was asked for.
func ill(err error) bool {
	var request *ranged.RequestError
	var status *ranged.StatusError
	return errors.As(err, &request) ||
		errors.As(err, &status) && (status.Status >= 500 || status.Status == http.StatusTooManyRequests)
}

// ended tells whether err is that of a caller who has gone or of a close, for
// which no host can do anything.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, os.ErrClosed)
}
