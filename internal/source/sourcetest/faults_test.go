package sourcetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

const fileSize = 300000

// faults are what a server can do to a range, and what a reader gets then.
var faults = []struct {
	name  string
	fault sourcetest.Fault
	// once is what a read with retries ends with when one request meets the
	// fault, always when all do; nil: the right bytes.
	once, always error
	waits        bool // it ends by a time-out only
}{
	{"none", nil, nil, nil, false},
	{"200 for 206", sourcetest.Whole, nil, source.ErrNotBytes, false}, // once: asked again without If-Range
	{"206 without Content-Range", sourcetest.ContentRange(""), source.ErrNotBytes, source.ErrNotBytes, false},
	{"other start", sourcetest.Shifted, source.ErrNotBytes, source.ErrNotBytes, false},
	{"other end", sourcetest.EndsEarly, source.ErrNotBytes, source.ErrNotBytes, false},
	{"other total", sourcetest.WrongTotal, source.ErrChanged, source.ErrChanged, false},
	{"total unknown", sourcetest.TotalUnknown, source.ErrNotBytes, source.ErrNotBytes, false},
	{"malformed Content-Range", sourcetest.ContentRange("bytes 0-/300000"), source.ErrNotBytes, source.ErrNotBytes, false},
	{"unsatisfied 206", sourcetest.ContentRange("bytes */300000"), source.ErrNotBytes, source.ErrNotBytes, false},
	{"closed at once", sourcetest.Cut(0, sourcetest.Closed), nil, io.ErrUnexpectedEOF, false},
	{"closed in the body", sourcetest.Cut(20000, sourcetest.Closed), nil, io.ErrUnexpectedEOF, false},
	{"reset at once", sourcetest.Cut(0, sourcetest.Reset), nil, source.ErrUnreachable, false},
	{"reset in the body", sourcetest.Cut(20000, sourcetest.Reset), nil, source.ErrUnreachable, false},
	{"stall at once", sourcetest.Cut(0, sourcetest.Stalled), nil, source.ErrUnreachable, true},
	{"stall in the body", sourcetest.Cut(20000, sourcetest.Stalled), nil, source.ErrUnreachable, true},
	{"no answer", sourcetest.Silent, nil, source.ErrUnreachable, true},
	{"short, framed", sourcetest.ShortFramed, source.ErrNotBytes, source.ErrNotBytes, false},
	{"short, chunked", sourcetest.ShortChunked, nil, io.ErrUnexpectedEOF, false}, // each time all but one byte of the rest come
	{"long, framed", sourcetest.LongFramed, source.ErrNotBytes, source.ErrNotBytes, false},
	{"long, chunked", sourcetest.LongChunked, source.ErrNotBytes, source.ErrNotBytes, false},
	{"chunked", sourcetest.Chunked, nil, nil, false},
	{"429", sourcetest.Status(429, ""), nil, source.ErrBusy, false},
	{"429 with Retry-After", sourcetest.Status(429, "0"), nil, source.ErrBusy, false},
	{"503", sourcetest.Status(503, ""), nil, source.ErrBusy, false},
	{"500", sourcetest.Status(500, ""), nil, &httprange.StatusError{Status: 500}, false},
	{"502", sourcetest.Status(502, ""), nil, source.ErrUnreachable, false},
	{"404", sourcetest.Status(404, ""), source.ErrNotFound, source.ErrNotFound, false},
	{"403", sourcetest.Status(403, ""), source.ErrDenied, source.ErrDenied, false},
	{"304", sourcetest.Status(304, ""), source.ErrNotBytes, source.ErrNotBytes, false},
	{"204", sourcetest.Status(204, ""), source.ErrNotBytes, source.ErrNotBytes, false},
	{"412", sourcetest.Status(412, ""), source.ErrChanged, source.ErrChanged, false},
	{"416", sourcetest.Unsatisfiable(fileSize), source.ErrNotBytes, source.ErrNotBytes, false},
	{"416 of another size", sourcetest.Unsatisfiable(100), source.ErrChanged, source.ErrChanged, false},
	{"other ETag", sourcetest.Header("ETag", `"v2"`), source.ErrChanged, source.ErrChanged, false},
	{"ETag turned weak", sourcetest.Header("ETag", `W/"v1"`), source.ErrChanged, source.ErrChanged, false},
	{"no ETag", sourcetest.Header("ETag", ""), source.ErrChanged, source.ErrChanged, false},
	{"gzip", sourcetest.Gzip, source.ErrNotBytes, source.ErrNotBytes, false},
	{"multipart", sourcetest.Multipart, source.ErrNotBytes, source.ErrNotBytes, false},
	{"redirect to nowhere", sourcetest.Status(302, ""), source.ErrNotBytes, source.ErrNotBytes, false},
}

// mustEnd reads a range and wants its bytes where want is nil, and otherwise
// that error behind nothing but right bytes.
func mustEnd(t *testing.T, b source.Blob, data []byte, off, n int64, want error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := sourcetest.Read(ctx, b, off, n)
	if int64(len(got)) > n || !bytes.Equal(got, data[off:off+int64(len(got))]) {
		t.Errorf("[%d,+%d): wrong bytes, error %v", off, n, err)
	}
	if err == nil && int64(len(got)) != n {
		t.Errorf("[%d,+%d): %d bytes without an error", off, n, len(got))
	}
	if ctx.Err() != nil {
		t.Errorf("[%d,+%d): hangs", off, n)
	}
	var status, wantStatus *httprange.StatusError
	if errors.As(want, &wantStatus) && errors.As(err, &status) && status.Status == wantStatus.Status {
		return
	}
	if !errors.Is(err, want) {
		t.Errorf("[%d,+%d): error %v, want %v", off, n, err, want)
	}
}

// attempts is how many requests in a row may fail in these tests.
const attempts = 4

// patience gives faults that say nothing a short time-out, and others one that a
// busy machine does not reach.
func patience(waits bool) httprange.Options {
	d := 10 * time.Second
	if waits {
		d = 150 * time.Millisecond
	}
	return httprange.Options{Stall: d, ResponseHeader: d}
}

func openFile(t *testing.T, url string, opts httprange.Options) (plain, retried source.Blob) {
	t.Helper()
	b, err := httprange.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b, retry.Wrap(b, retry.Policy{Attempts: attempts, First: time.Millisecond})
}

func TestFaults(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := sourcetest.NewServer(t, data)
			_, b := openFile(t, s.URL(), patience(c.waits))
			s.Next(c.fault)
			mustEnd(t, b, data, 1000, 200000, c.once)
			mustEnd(t, b, data, 1000, 200000, nil)
			s.Always(c.fault)
			mustEnd(t, b, data, 1000, 200000, c.always)
			s.Always(nil)
			mustEnd(t, b, data, 1000, 200000, nil)
		})
	}
}

// The same through HTTP/2, where a connection is not one request's: only what
// ends well or badly is compared, not how.
func TestFaultsOverHTTP2(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := sourcetest.NewTLSServer(t, data)
			opts := patience(c.waits)
			opts.TLS = s.ClientTLS()
			_, b := openFile(t, s.URL(), opts)
			s.Next(c.fault)
			mustEnd(t, b, data, 1000, 200000, c.once)
			s.Always(nil)
			mustEnd(t, b, data, 1000, 200000, nil)
		})
	}
}

func TestRangeFromTheStartOfAWholeFile(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	s := sourcetest.NewServer(t, data)
	plain, _ := openFile(t, s.URL(), httprange.Options{})
	s.Always(sourcetest.Whole)
	mustEnd(t, plain, data, 0, 1000, nil)
	mustEnd(t, plain, data, 0, fileSize, nil)
	mustEnd(t, plain, data, 1, 1000, source.ErrNotBytes)
}

func TestSequentialGoesOnFromTheStart(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	s := sourcetest.NewServer(t, data)
	s.Always(sourcetest.Whole)
	plain, b := openFile(t, s.URL(), httprange.Options{Stall: 150 * time.Millisecond})
	if !source.IsSequential(b) {
		t.Fatal("not sequential")
	}
	whole := func(f sourcetest.Fault) sourcetest.Fault {
		return func(a *sourcetest.Answer) { sourcetest.Whole(a); f(a) }
	}
	s.Next(whole(sourcetest.Cut(100000, sourcetest.Closed)), whole(sourcetest.Cut(250000, sourcetest.Reset)),
		whole(sourcetest.Cut(260000, sourcetest.Stalled)))
	mustEnd(t, b, data, 0, fileSize, nil)
	s.Next(whole(sourcetest.Cut(100000, sourcetest.Closed)))
	mustEnd(t, plain, data, 0, fileSize, io.ErrUnexpectedEOF)
	s.Next(whole(sourcetest.LongChunked))
	mustEnd(t, plain, data, 0, fileSize, source.ErrNotBytes)
	// Changed in the middle of a resumption.
	s.Next(whole(sourcetest.Cut(100000, sourcetest.Closed)), whole(sourcetest.Header("ETag", `"v2"`)))
	mustEnd(t, b, data, 0, fileSize, source.ErrChanged)
}

func TestChangedContent(t *testing.T) {
	data, other := sourcetest.Bytes(fileSize), make([]byte, fileSize)
	for _, c := range []struct {
		name, first, second string
		modTime             time.Time
		want                error
	}{
		{"strong", `"v1"`, `"v2"`, time.Time{}, source.ErrChanged},
		{"weak", `W/"v1"`, `W/"v2"`, time.Time{}, source.ErrChanged},
		{"date", "", "", time.Unix(2e9, 0).UTC(), source.ErrChanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := sourcetest.NewServer(t, data)
			s.SetETag(c.first)
			_, b := openFile(t, s.URL(), httprange.Options{})
			mustEnd(t, b, data, 5000, 100, nil)
			s.SetContent(other, c.second)
			s.SetModTime(c.modTime)
			mustEnd(t, b, data, 0, fileSize, c.want)
			mustEnd(t, b, data, 5000, 100, c.want)
			s.SetContent(other[:fileSize-1], c.first)
			mustEnd(t, b, data, 5000, 100, c.want)
		})
	}
}

func TestBursts(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	s := sourcetest.NewServer(t, data)
	plain, _ := openFile(t, s.URL(), httprange.Options{})
	b := retry.Wrap(plain, retry.Policy{First: time.Millisecond})
	s.Next(sourcetest.Burst(5, http.StatusTooManyRequests, "")...)
	mustEnd(t, b, data, 7, 100, nil)
	s.Next(sourcetest.Burst(5, http.StatusServiceUnavailable, "0")...)
	mustEnd(t, b, data, 7, 100, nil)
	s.Next(sourcetest.Burst(20, http.StatusServiceUnavailable, "")...)
	mustEnd(t, b, data, 7, 100, source.ErrBusy)
}

func TestSignatureExpiresInTheMiddle(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	s := sourcetest.NewServer(t, data)
	_, b := openFile(t, s.Redirect(), httprange.Options{})
	for range 3 {
		s.Expire()
		s.Next(func(a *sourcetest.Answer) {
			sourcetest.Cut(30000, sourcetest.Closed)(a)
			go s.Expire() // before or after the next request, either must do
		})
		mustEnd(t, b, data, 10, 200000, nil)
	}
}

func TestThrottle(t *testing.T) {
	data := sourcetest.Bytes(fileSize)
	s := sourcetest.NewServer(t, data)
	plain, _ := openFile(t, s.URL(), httprange.Options{})
	s.Throttle(20*time.Millisecond, 1<<20)
	began := time.Now()
	mustEnd(t, plain, data, 0, 200000, nil)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("200,000 bytes at 1 MiB/s after 20 ms took %v", took)
	}
}
