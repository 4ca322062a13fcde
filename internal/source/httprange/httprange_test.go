package httprange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func mustOpen(t testing.TB, url string, opts httprange.Options) source.Blob {
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
	return b
}

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		return mustOpen(t, sourcetest.NewServer(t, data).URL(), httprange.Options{})
	})
}

func TestReopenMakesNoRequest(t *testing.T) {
	data := sourcetest.Bytes(10000)
	s := sourcetest.NewServer(t, data)
	for id, want := range map[source.Identity]error{
		{Size: 10000, Validator: `"v1"`}:                                         nil,
		{Size: 10000, Validator: `"v0"`}:                                         source.ErrChanged,
		{Size: 10000, Validator: `W/"v1"`}:                                       nil,
		{Size: 10000, Validator: `W/"v0"`}:                                       source.ErrChanged,
		{Size: 10000, Validator: "last-modified: Fri, 02 Jan 2026 03:04:05 GMT"}: nil,
		{Size: 10000, Validator: "last-modified: Fri, 02 Jan 2026 03:04:06 GMT"}: source.ErrChanged,
		{Size: 10000}: nil,
		{Size: 9999}:  source.ErrChanged,
		{Size: 20000}: source.ErrChanged,
	} {
		before := len(s.Log())
		b, err := httprange.Reopen(s.URL(), id, httprange.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if b.Size() != id.Size || source.IdentityOf(b) != id || len(s.Log()) != before {
			t.Fatalf("%+v: size %d, %d requests", id, b.Size(), len(s.Log())-before)
		}
		for _, off := range []int64{0, 5000, id.Size - 1} {
			if got, err := sourcetest.Read(t.Context(), b, off, 1); !errors.Is(err, want) || err == nil && got[0] != data[off] {
				t.Errorf("%+v at %d: %v, want %v", id, off, err, want)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReopenedSequential(t *testing.T) {
	data := sourcetest.Bytes(10000)
	s := sourcetest.NewServer(t, data)
	s.Always(sourcetest.Whole)
	b, err := httprange.Reopen(s.URL(), source.Identity{Size: 10000, Validator: `"v1"`}, httprange.Options{Sequential: true})
	if err != nil {
		t.Fatal(err)
	}
	if !source.IsSequential(b) {
		t.Fatal("not sequential")
	}
	sourcetest.MustRead(t, b, data, 0, 10000)
	if h := s.Log()[0].Header; h.Get("Range") != "" {
		t.Errorf("asked for a range: %v", h)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// A server that answers every If-Range with the whole file is asked without.
func TestIfRangeThatIsNotUnderstood(t *testing.T) {
	data := sourcetest.Bytes(10000)
	s := sourcetest.NewServer(t, data)
	b := mustOpen(t, s.URL(), httprange.Options{})
	s.Next(sourcetest.Whole)
	sourcetest.MustRead(t, b, data, 500, 100)
	sourcetest.MustRead(t, b, data, 600, 100)
	var sent []string
	for _, r := range s.Log() {
		sent = append(sent, r.Header.Get("If-Range"))
	}
	if got := strings.Join(sent, ","); got != `,"v1",,` {
		t.Fatalf("If-Range of the requests: %s", got)
	}
}

func TestHTTP2Suite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		s := sourcetest.NewTLSServer(t, data)
		t.Cleanup(func() {
			if proto := s.Log()[0].Proto; proto != "HTTP/2.0" {
				t.Errorf("protocol %s", proto)
			}
		})
		return mustOpen(t, s.URL(), httprange.Options{TLS: s.ClientTLS()})
	})
}

func TestSequentialSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		s := sourcetest.NewServer(t, data)
		s.Always(sourcetest.Whole)
		b := mustOpen(t, s.URL(), httprange.Options{})
		if source.IsSequential(b) != (len(data) > 0) {
			t.Fatal("a server without ranges, and the blob is not sequential")
		}
		return b
	})
}

func TestChunkedSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		s := sourcetest.NewServer(t, data)
		if len(data) > 0 {
			s.Always(sourcetest.Chunked)
		}
		return mustOpen(t, s.URL(), httprange.Options{})
	})
}

// A server that this project did not write.
func TestNetHTTP(t *testing.T) {
	for _, size := range []int64{0, 1, 2, 100000} {
		data := sourcetest.Bytes(int(size))
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(data))
		}))
		t.Cleanup(s.Close)
		b := mustOpen(t, s.URL, httprange.Options{})
		if id := source.IdentityOf(b); id.Size != size || id.Validator != "last-modified: Sun, 09 Sep 2001 01:46:40 GMT" {
			t.Fatalf("identity %+v", id)
		}
		for off := int64(0); off < size; off += 33333 {
			sourcetest.MustRead(t, b, data, off, size-off)
		}
	}
}

func TestOneConnectionIsKept(t *testing.T) {
	data := sourcetest.Bytes(1 << 20)
	s := sourcetest.NewServer(t, data)
	b := mustOpen(t, s.Redirect(), httprange.Options{})
	for off := int64(0); off < 1<<20; off += 100000 {
		sourcetest.MustRead(t, b, data, off, min(100000, 1<<20-off))
	}
	s.Expire()
	sourcetest.MustRead(t, b, data, 5, 100)
	// A consumer that stops at the last byte and never sees io.EOF.
	r, err := b.ReadRange(t.Context(), 10, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, b, data, 5, 100)
	for _, r := range s.Log() {
		if r.Conn != s.Log()[0].Conn {
			t.Fatalf("a second connection: %+v", r)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	data := sourcetest.Bytes(16 << 20)
	s := sourcetest.NewServer(t, data)
	b := mustOpen(t, s.URL(), httprange.Options{ConnsPerHost: 3})
	var held []io.Closer
	for range 3 {
		r, err := b.ReadRange(t.Context(), 0, 16<<20)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.ReadRange(ctx, 0, 1); !errors.Is(err, context.DeadlineExceeded) || source.Temporary(err) {
		t.Errorf("a fourth connection: %v", err)
	}
	for _, c := range held {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	sourcetest.MustRead(t, b, data, 77, 100)
}

func TestOpenErrors(t *testing.T) {
	s := sourcetest.NewServer(t, sourcetest.Bytes(1000))
	for _, c := range []struct {
		name  string
		fault sourcetest.Fault
		want  error
	}{
		{"404", sourcetest.Status(404, ""), source.ErrNotFound},
		{"410", sourcetest.Status(410, ""), source.ErrNotFound},
		{"401", sourcetest.Status(401, ""), source.ErrDenied},
		{"403", sourcetest.Status(403, ""), source.ErrDenied},
		{"429", sourcetest.Status(429, "7"), source.ErrBusy},
		{"503", sourcetest.Status(503, ""), source.ErrBusy},
		{"no length", sourcetest.NoLength, source.ErrSizeUnknown},
		{"total unknown", sourcetest.TotalUnknown, source.ErrSizeUnknown},
		{"gzip", sourcetest.Gzip, source.ErrNotBytes},
		{"multipart", sourcetest.Multipart, source.ErrNotBytes},
		{"no Content-Range", sourcetest.ContentRange(""), source.ErrNotBytes},
		{"wrong Content-Range", sourcetest.ContentRange("bytes 1-1/1000"), source.ErrNotBytes},
		{"204", sourcetest.Status(204, ""), source.ErrNotBytes},
		{"416", sourcetest.Unsatisfiable(1000), source.ErrNotBytes},
		{"silent", sourcetest.Silent, source.ErrUnreachable},
	} {
		s.Next(c.fault)
		_, err := httprange.Open(t.Context(), s.URL(), httprange.Options{ResponseHeader: 100 * time.Millisecond})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	s.Next(sourcetest.Unsatisfiable(0))
	if b := mustOpen(t, s.URL(), httprange.Options{}); b.Size() != 0 || source.IsSequential(b) {
		t.Errorf("416 for an empty file: size %d", b.Size())
	}
	s.Next(sourcetest.Status(429, "7"))
	_, err := httprange.Open(t.Context(), s.URL(), httprange.Options{})
	var status *httprange.StatusError
	if !errors.As(err, &status) || status.RetryAfter != 7*time.Second || !source.Temporary(err) || source.RetryDelay(err) != 7*time.Second {
		t.Errorf("facts of a 429: %+v", status)
	}
}

func TestUnreachable(t *testing.T) {
	for url, temporary := range map[string]bool{
		"http://127.0.0.1:1/":           true,
		"http://no-such-host.invalid./": false,
	} {
		_, err := httprange.Open(t.Context(), url, httprange.Options{Connect: 5 * time.Second})
		if !errors.Is(err, source.ErrUnreachable) {
			t.Errorf("%s: %v", url, err)
		}
		if source.Temporary(err) != temporary {
			t.Errorf("%s: temporary %v: %v", url, source.Temporary(err), err)
		}
	}
}

func TestSharedTransport(t *testing.T) {
	data := sourcetest.Bytes(1000)
	s := sourcetest.NewServer(t, data)
	transport := httprange.NewTransport(httprange.Options{})
	t.Cleanup(transport.CloseIdleConnections)
	for range 3 {
		b := mustOpen(t, s.URL(), httprange.Options{Transport: transport})
		sourcetest.MustRead(t, b, data, 10, 100)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range s.Log() {
		if r.Conn != s.Log()[0].Conn {
			t.Fatal("blobs do not share their connections")
		}
	}
}

func BenchmarkReadRange(b *testing.B) {
	const size = 256 << 20
	data := make([]byte, size)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(data))
	}))
	defer s.Close()
	blob := mustOpen(b, s.URL, httprange.Options{})
	buf := make([]byte, 1<<20)
	for name, n := range map[string]int64{"256MiB": size, "1MiB": 1 << 20, "64KiB": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				r, err := blob.ReadRange(b.Context(), 0, n)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = r.Read(buf)
				}
				if !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A page that stands in for the file for a while is no other version of it.
func TestStandInPages(t *testing.T) {
	data, page := sourcetest.Bytes(10000), []byte("<html>down for maintenance</html>")
	stand := func(headers ...string) sourcetest.Fault {
		return func(a *sourcetest.Answer) {
			a.Status, a.Header, a.Off, a.N, a.Content = http.StatusOK, http.Header{}, 0, int64(len(page)), bytes.NewReader(page)
			for i := 0; i < len(headers); i += 2 {
				a.Header.Set(headers[i], headers[i+1])
			}
		}
	}
	unframed := func(a *sourcetest.Answer) { stand()(a); a.Length = "none" }
	later := "Sat, 03 Jan 2026 03:04:05 GMT"
	for _, c := range []struct {
		name    string
		etag    string // of the file
		dated   bool   // the file has a modification time
		fault   sourcetest.Fault
		changed bool
	}{
		{name: "page", etag: `"v1"`, fault: stand("Content-Type", "text/html")},
		{name: "page of another kind", etag: `"v1"`, fault: stand("Content-Type", "text/plain")},
		{name: "page with an ETag", etag: `"v1"`, fault: stand("Content-Type", "text/html; charset=utf-8", "ETag", `"page"`)},
		{name: "page with a date", etag: `"v1"`, fault: stand("Content-Type", "text/html", "Last-Modified", later)},
		{name: "date where an ETag is known", etag: `"v1"`, fault: stand("Content-Type", "text/plain", "Last-Modified", later)},
		{name: "page for a dated file", dated: true, fault: stand("Content-Type", "text/html")},
		{name: "page for a file without a version", fault: stand("Content-Type", "text/html")},
		{name: "page of unknown length", etag: `"v1"`, fault: unframed},
		{name: "page of unknown length for a file without a version", fault: unframed},
		{name: "no validator", etag: `"v1"`, fault: func(a *sourcetest.Answer) { sourcetest.Whole(a); a.Header.Del("ETag") }},
		{name: "other version", etag: `"v1"`, fault: stand("Content-Type", "text/plain", "ETag", `"v2"`), changed: true},
		{name: "other date", dated: true, fault: stand("Content-Type", "text/plain", "Last-Modified", later), changed: true},
	} {
		for _, sequential := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, sequential %v", c.name, sequential), func(t *testing.T) {
				s := sourcetest.NewServer(t, data)
				s.SetETag(c.etag)
				if !c.dated {
					s.SetModTime(time.Time{})
				}
				if sequential {
					s.Always(sourcetest.Whole)
				}
				b := mustOpen(t, s.URL(), httprange.Options{})
				s.Next(c.fault)
				_, err := sourcetest.Read(t.Context(), b, 0, 20)
				if c.changed != errors.Is(err, source.ErrChanged) || c.changed == source.Temporary(err) ||
					!c.changed && !errors.Is(err, source.ErrNotBytes) {
					t.Errorf("read: %v, temporary %v", err, source.Temporary(err))
				}
				sourcetest.MustRead(t, b, data, 0, 10000)
			})
		}
	}
}
