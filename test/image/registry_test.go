package image

import (
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

// fault is a way to answer a request for a range of a blob wrongly.
type fault int

const (
	right fault = iota
	whole       // 200 with all of the blob
	short       // the connection is closed in order, in the middle of the body
	reset       // it is reset there
	busy        // 503
	shift       // 206 of another range
)

// faulty stands before a registry. It delays blobs, and answers wrongly.
type faulty struct {
	content http.Handler

	mu    sync.Mutex
	rate  int64 // bytes a second for each answer; 0: no limit
	down  bool
	left  int     // requests until it goes down; 0: it does not
	every []fault // in turn
	n     int
}

func newFaulty(t testing.TB) (*faulty, *ocitest.Registry) {
	f := &faulty{content: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	return f, ocitest.NewFor(t, f)
}

func (f *faulty) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// ServeHTTP answers one request.
func (f *faulty) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	f.mu.Lock()
	if f.left > 0 {
		f.left--
		f.down = f.down || f.left == 0
	}
	rate, down, what := f.rate, f.down, right
	isRange := q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") && q.Header.Get("Range") != ""
	if isRange && len(f.every) > 0 {
		what = f.every[f.n%len(f.every)]
		f.n++
	}
	f.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler)
	}
	if !isRange {
		f.content.ServeHTTP(w, q)
		return
	}
	out := &cutWriter{ResponseWriter: w, f: f, rate: rate, left: -1}
	switch what {
	case busy:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case whole:
		q = q.Clone(q.Context())
		q.Header.Del("Range")
	case shift:
		q = q.Clone(q.Context())
		q.Header.Set("Range", "bytes=1-100")
	case short, reset:
		out.left, out.reset = 10_000, what == reset
	}
	f.content.ServeHTTP(out, q)
}

// cutWriter sends a body slowly, and ends it early.
type cutWriter struct {
	http.ResponseWriter
	f     *faulty
	rate  int64
	left  int64 // bytes until the end; -1: all
	reset bool
}

func (w *cutWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), 64<<10)]
		if w.left >= 0 {
			part = part[:min(int64(len(part)), w.left)]
		}
		if w.left == 0 {
			w.cut()
		}
		var m int
		m, err = w.ResponseWriter.Write(part)
		if n, p = n+m, p[m:]; w.left >= 0 {
			w.left -= int64(m)
		}
		if w.rate > 0 {
			instance.Pause(time.Duration(int64(m) * int64(time.Second) / w.rate))
		}
		w.f.mu.Lock()
		down := w.f.down
		w.f.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
	}
	return n, err
}

func (w *cutWriter) cut() {
	if w.reset {
		if conn, _, err := http.NewResponseController(w.ResponseWriter).Hijack(); err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			_ = conn.Close()
		}
	}
	panic(http.ErrAbortHandler)
}
