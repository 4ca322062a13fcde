package oci_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// faulty makes r's blobs those of a server of data that does what it is told.
func faulty(t testing.TB, r *ocitest.Registry, data []byte) *sourcetest.Server {
	s := sourcetest.NewServer(t, data)
	r.Blob(data, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q = q.Clone(q.Context())
		q.URL.Path = "/file"
		q.Header.Del("Authorization")
		s.ServeHTTP(w, q)
	}))
	return s
}

// mustEnd reads a range and wants its bytes where want is nil, and otherwise
// that error behind nothing but right bytes.
func mustEnd(t *testing.T, b source.Blob, data []byte, off, n int64, want error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ocitest.Patience)
	defer cancel()
	got, err := sourcetest.Read(ctx, b, off, n)
	switch {
	case ctx.Err() != nil:
		t.Errorf("[%d,+%d): hangs: %v", off, n, err)
	case int64(len(got)) > n || !bytes.Equal(got, data[off:off+int64(len(got))]):
		t.Errorf("[%d,+%d): wrong bytes, error %v", off, n, err)
	case err == nil && int64(len(got)) != n:
		t.Errorf("[%d,+%d): %d bytes without an error", off, n, len(got))
	case !errors.Is(err, want):
		t.Errorf("[%d,+%d): error %v, want %v", off, n, err, want)
	}
}

const faultSize = 300000

var faults = []struct {
	name  string
	fault sourcetest.Fault
	// once is what a read with retries ends with when one request meets the
	// fault, always when all do; nil: the right bytes.
	once, always error
	waits        bool // it ends by a time-out only
}{
	{"none", nil, nil, nil, false},
	{"200 for 206", sourcetest.Whole, nil, source.ErrNotBytes, false},
	{"206 without Content-Range", sourcetest.ContentRange(""), source.ErrNotBytes, source.ErrNotBytes, false},
	{"other start", sourcetest.Shifted, source.ErrNotBytes, source.ErrNotBytes, false},
	{"other end", sourcetest.EndsEarly, source.ErrNotBytes, source.ErrNotBytes, false},
	{"other total", sourcetest.WrongTotal, source.ErrNotBytes, source.ErrNotBytes, false},
	{"total unknown", sourcetest.TotalUnknown, source.ErrNotBytes, source.ErrNotBytes, false},
	{"closed in the body", sourcetest.Cut(20000, sourcetest.Closed), nil, io.ErrUnexpectedEOF, false},
	{"reset in the body", sourcetest.Cut(20000, sourcetest.Reset), nil, source.ErrUnreachable, false},
	{"stall in the body", sourcetest.Cut(20000, sourcetest.Stalled), nil, source.ErrUnreachable, true},
	{"no answer", sourcetest.Silent, nil, source.ErrUnreachable, true},
	{"short, framed", sourcetest.ShortFramed, source.ErrNotBytes, source.ErrNotBytes, false},
	{"short, chunked", sourcetest.ShortChunked, nil, io.ErrUnexpectedEOF, false},
	{"long, framed", sourcetest.LongFramed, source.ErrNotBytes, source.ErrNotBytes, false},
	{"long, chunked", sourcetest.LongChunked, source.ErrNotBytes, source.ErrNotBytes, false},
	{"chunked", sourcetest.Chunked, nil, nil, false},
	{"429", sourcetest.Status(429, "0"), nil, source.ErrBusy, false},
	{"503", sourcetest.Status(503, ""), nil, source.ErrBusy, false},
	{"502", sourcetest.Status(502, ""), nil, source.ErrUnreachable, false},
	{"404", sourcetest.Status(404, ""), source.ErrNotFound, source.ErrNotFound, false},
	{"412", sourcetest.Status(412, ""), source.ErrNotBytes, source.ErrNotBytes, false},
	{"416 of another size", sourcetest.Unsatisfiable(100), source.ErrNotBytes, source.ErrNotBytes, false},
	{"gzip", sourcetest.Gzip, source.ErrNotBytes, source.ErrNotBytes, false},
	{"multipart", sourcetest.Multipart, source.ErrNotBytes, source.ErrNotBytes, false},
	{"other ETag", sourcetest.Header("ETag", `"v2"`), nil, nil, false}, // the digest in the address is the version
}

func TestFaults(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	for _, redirected := range []bool{false, true} {
		for _, c := range faults {
			name := c.name
			if redirected {
				name += " at the redirect's target"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := ocitest.New(t)
				ref := r.Push(t, "app:1", ocitest.Image(t, data))
				s := faulty(t, r, data)
				opts := options(t)
				if c.waits {
					opts.Stall, opts.ResponseHeader = 150*time.Millisecond, 150*time.Millisecond
				}
				if redirected {
					r.RedirectBlobs()
				}
				b := retry.Wrap(mustBlob(t, mustOpen(t, ref, opts), 0), retry.Policy{Attempts: 4, First: time.Millisecond})
				once := c.once
				if redirected && (c.name == "404" || strings.HasPrefix(c.name, "502") || c.name == "503") {
					once = nil // the registry is asked for another address
				}
				s.Next(c.fault)
				mustEnd(t, b, data, 1000, 200000, once)
				mustEnd(t, b, data, 1000, 200000, nil)
				s.Always(c.fault)
				mustEnd(t, b, data, 1000, 200000, c.always)
				s.Always(nil)
				mustEnd(t, b, data, 1000, 200000, nil)
			})
		}
	}
}

// A 403 without a challenge renews the token, but not for each reader again.
func TestDeniedWithoutChallenge(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("", "")
	b := mustBlob(t, mustOpen(t, ref, options(t)), 0)
	token := func(q ocitest.Request) bool { return q.Server == "token" }
	before := r.Count(token)
	r.Deny(1)
	mustEnd(t, b, data, 10, 1000, nil)
	if n := r.Count(token) - before; n != 1 {
		t.Errorf("%d requests for tokens after one 403", n)
	}
	r.Deny(1000)
	for range 50 {
		mustEnd(t, b, data, 10, 1000, source.ErrDenied)
	}
	if n := r.Count(token) - before; n > 3 {
		t.Errorf("%d requests for tokens that do not help", n)
	}
	r.Deny(0)
	mustEnd(t, b, data, 10, 1000, nil)
}

func TestErrorsNameNoSecrets(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	r := ocitest.New(t)
	ref := r.Push(t, "team/app:1", ocitest.Image(t, data))
	s := faulty(t, r, data)
	r.WantToken("me", "S3CRET")
	r.RedirectBlobs()
	opts := options(t)
	opts.Authfile = authfile(t, r.Host(), "me", "S3CRET")
	img := mustOpen(t, ref, opts)
	b := mustBlob(t, img, 0)
	for _, f := range []sourcetest.Fault{
		sourcetest.Status(404, ""), sourcetest.Status(500, ""), sourcetest.WrongTotal, sourcetest.Whole,
		sourcetest.Cut(0, sourcetest.Reset), sourcetest.Cut(1000, sourcetest.Closed), sourcetest.LongFramed,
	} {
		s.Always(f)
		_, err := sourcetest.Read(t.Context(), b, 1000, 5000)
		if err == nil {
			t.Error("no error")
			continue
		}
		text := err.Error()
		for _, secret := range []string{"S3CRET", "s3cret", "t0ken", "signature", img.Layers[0].Digest.Encoded()} {
			if strings.Contains(text, secret) {
				t.Errorf("%q in: %s", secret, text)
			}
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(text, "127.0.0.1") {
			t.Errorf("no host in: %s", text)
		}
		t.Log(text)
	}
}
