package sourcetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is an HTTP server on loopback with one file. It answers GET with
// ranges, ETag, Last-Modified and If-Range as RFC 9110 has them, unless it is told otherwise.
//
//	URL()       the file
//	Redirect()  a URL that redirects to a signed URL of the file, which expires when Expire is called
type Server struct {
	http *httptest.Server
	done chan struct{} // closed when the server stops

	mu      sync.Mutex
	content io.ReaderAt
	size    int64
	etag    string
	modTime time.Time
	queue   []Fault // for the next GETs of the file, one each; nil: none
	always  Fault
	login   string // user:password that the file asks for
	latency time.Duration
	rate    int64 // bytes a second; 0: no limit
	epoch   int   // which signatures are valid
	log     []Request
}

// Request is one line of the server's log.
type Request struct {
	Path   string
	Header http.Header
	Proto  string
	Conn   string // the client's address: equal for requests on one connection
}

const (
	filePath     = "/file"
	redirectPath = "/redirect"
	signedPath   = "/signed"
)

// NewServer starts a server of data that stops when the test ends.
func NewServer(t testing.TB, data []byte) *Server {
	return NewServerAt(t, bytes.NewReader(data), int64(len(data)))
}

// NewServerAt starts a server of the first size bytes of content, which may be
// computed: a file of many TiB costs nothing.
func NewServerAt(t testing.TB, content io.ReaderAt, size int64) *Server {
	s := newServer(t, content, size)
	s.http.Start()
	return s
}

// NewTLSServer is NewServer over HTTPS with HTTP/2. ClientTLS is what trusts it.
func NewTLSServer(t testing.TB, data []byte) *Server {
	s := newServer(t, bytes.NewReader(data), int64(len(data)))
	s.http.EnableHTTP2 = true
	s.http.StartTLS()
	return s
}

func newServer(t testing.TB, content io.ReaderAt, size int64) *Server {
	s := &Server{
		done: make(chan struct{}), content: content, size: size, etag: `"v1"`,
		modTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	s.http = httptest.NewUnstartedServer(s)
	t.Cleanup(func() {
		close(s.done)
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is the file's.
func (s *Server) URL() string { return s.http.URL + filePath }

// Redirect is a URL that answers with a redirect to a signed URL of the file.
func (s *Server) Redirect() string { return s.http.URL + redirectPath }

// ClientTLS is a client configuration that trusts a server of NewTLSServer.
func (s *Server) ClientTLS() *tls.Config {
	pool := s.http.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// Expire makes every signed URL that was handed out so far answer 403.
func (s *Server) Expire() { s.set(func() { s.epoch++ }) }

// Next gives the next GETs of the file one fault each; nil is none.
func (s *Server) Next(faults ...Fault) { s.set(func() { s.queue = append(s.queue, faults...) }) }

// Always gives every GET of the file that Next has nothing for this fault.
func (s *Server) Always(f Fault) { s.set(func() { s.always = f }) }

// SetContent replaces the file.
func (s *Server) SetContent(data []byte, etag string) {
	s.set(func() { s.content, s.size, s.etag = bytes.NewReader(data), int64(len(data)), etag })
}

// SetETag replaces the ETag alone; empty: the file has none.
func (s *Server) SetETag(etag string) { s.set(func() { s.etag = etag }) }

// SetModTime replaces the modification time; zero: the file has none.
func (s *Server) SetModTime(at time.Time) { s.set(func() { s.modTime = at }) }

// SetLogin makes the file ask for basic authentication.
func (s *Server) SetLogin(user, password string) { s.set(func() { s.login = user + ":" + password }) }

// Throttle delays each answer and bounds each body's rate in bytes a second; 0: no limit.
func (s *Server) Throttle(latency time.Duration, rate int64) {
	s.set(func() { s.latency, s.rate = latency, rate })
}

// Log is the requests so far.
func (s *Server) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	epoch, latency, rate, login := strconv.Itoa(s.epoch), s.latency, s.rate, s.login
	s.log = append(s.log, Request{r.URL.Path, r.Header.Clone(), r.Proto, r.RemoteAddr})
	s.mu.Unlock()
	s.wait(r.Context(), latency)
	user, password, _ := r.BasicAuth()
	switch {
	case r.URL.Path == redirectPath:
		w.Header().Set("Location", signedPath+"?signature="+epoch)
		w.WriteHeader(http.StatusFound)
		return
	case r.URL.Path == signedPath && r.URL.Query().Get("signature") != epoch:
		w.WriteHeader(http.StatusForbidden)
		return
	case r.URL.Path != filePath && r.URL.Path != signedPath:
		w.WriteHeader(http.StatusNotFound)
		return
	case login != "" && login != user+":"+password:
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a := s.right(r)
	s.nextFault()(a)
	a.send(s, w, r, rate)
}

func (s *Server) nextFault() Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.always
	if len(s.queue) > 0 {
		f, s.queue = s.queue[0], s.queue[1:]
	}
	if f == nil {
		return func(*Answer) {}
	}
	return f
}

// right is the answer without fault.
func (s *Server) right(r *http.Request) *Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &Answer{Status: http.StatusOK, Header: http.Header{}, Size: s.size, N: s.size, Content: s.content, Cut: -1}
	if s.etag != "" {
		a.Header.Set("ETag", s.etag)
	}
	if !s.modTime.IsZero() {
		a.Header.Set("Last-Modified", s.modTime.Format(http.TimeFormat))
	}
	a.Header.Set("Accept-Ranges", "bytes")
	a.Header.Set("Content-Type", "application/octet-stream")
	condition := r.Header.Get("If-Range")
	matches := condition == "" ||
		condition == s.etag && strings.HasPrefix(condition, `"`) || // weak ones never match
		condition == a.Header.Get("Last-Modified")
	if spec := r.Header.Get("Range"); spec != "" && matches && s.size > 0 {
		a.narrow(spec)
	}
	return a
}

// wait waits for d, or until the request or the server ends.
func (s *Server) wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.done:
	}
}
