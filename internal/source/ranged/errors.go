package ranged

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// StatusError is an answer that is neither the bytes nor a redirect.
type StatusError struct {
	Status     int
	URL        string        // redacted, or what Sender.Name made of it
	RetryAfter time.Duration // what the server asks for; 0: nothing
}

func (a *Answer) statusError() error {
	return &StatusError{
		Status:     a.StatusCode,
		URL:        a.body.name,
		RetryAfter: retryAfter(a.Header.Get("Retry-After"), time.Now()),
	}
}

// Error names the server, because a redirect may have led to another one.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: %d %s", e.URL, e.Status, strings.ToLower(http.StatusText(e.Status)))
}

// Temporary tells whether the same request can succeed later.
func (e *StatusError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return e.Status >= 500
}

// RetryDelay is RetryAfter, for source.RetryDelay.
func (e *StatusError) RetryDelay() time.Duration { return e.RetryAfter }

// Unwrap returns the sentinel that the status stands for, or nil.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return source.ErrDenied
	case http.StatusNotFound, http.StatusGone:
		return source.ErrNotFound
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return source.ErrBusy
	case http.StatusRequestTimeout, http.StatusBadGateway, http.StatusGatewayTimeout:
		return source.ErrUnreachable
	}
	if e.Status < 400 {
		return source.ErrNotBytes // such as 204, or 304 which nobody asked for
	}
	return nil
}

// standInError is an answer that is something else than the file, perhaps for a
// while only. It is a source.ErrNotBytes.
type standInError struct{ what string }

func (e *standInError) Error() string   { return fmt.Sprintf("%v: %s", source.ErrNotBytes, e.what) }
func (e *standInError) Temporary() bool { return true }
func (e *standInError) Unwrap() error   { return source.ErrNotBytes }

// retryAfter reads a Retry-After header (RFC 9110 section 10.2.3): seconds or a
// date. What is neither asks for nothing.
func retryAfter(s string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// RequestError is a request that got no answer, or whose answer broke off. It
// is a source.ErrUnreachable.
type RequestError struct {
	URL string // redacted, or what Sender.Name made of it
	Err error  // of the network, never with a URL in it
}

// Error says what the network said.
func (e *RequestError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.URL, source.ErrUnreachable, network(e.Err))
}

// network words an error of package net for people: what was done to what, and
// the system's answer, without its own "dial tcp" and the resolver's address.
func network(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("look up host %s: %s", dns.Name, dns.Err)
	case errors.As(err, &op) && op.Op == "dial" && op.Addr != nil:
		var call *os.SyscallError
		if errors.As(op.Err, &call) {
			return fmt.Sprintf("connect to %s: %v", op.Addr, call.Err)
		}
		return fmt.Sprintf("connect to %s: %v", op.Addr, op.Err)
	}
	return err.Error()
}

// Unwrap returns the sentinel and the cause.
func (e *RequestError) Unwrap() []error { return []error{source.ErrUnreachable, e.Err} }

// Temporary is true save for what stays as it is until somebody changes a
// name, an address or a certificate.
func (e *RequestError) Temporary() bool {
	var dns *net.DNSError
	if errors.As(e.Err, &dns) && dns.IsNotFound {
		return false
	}
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	return !errors.As(e.Err, &cert) && !errors.As(e.Err, &record) && !errors.Is(e.Err, os.ErrClosed)
}
