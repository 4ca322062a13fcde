package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// What a registry somewhere else is like.
const (
	lineLatency = 10 * time.Millisecond
	lineRate    = 50_000_000 // bytes a second
)

// line is the way to the registry: each request waits, all answers share a rate,
// and what was asked for is counted.
type line struct {
	mu    sync.Mutex
	slow  bool
	free  time.Time // when all that was given has been sent
	asked map[string]int
	sent  map[string]int64 // bytes, by digest or tag
	bytes int64
	last  time.Time // when the last byte of a blob was sent
	trace func(asked)
}

// asked is one request that was answered.
type asked struct {
	began, first, end time.Time
	path, ranged      string
	bytes             int64
}

// set makes the line slow or not, and forgets what was counted.
func (l *line) set(slow bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slow, l.asked, l.sent, l.bytes, l.last = slow, make(map[string]int), make(map[string]int64), 0, time.Time{}
}

// tally is what a line has counted.
type tally struct {
	requests int // all of them
	layer    int // the most for one of the layers
	bytes    int64
	last     time.Time
}

// count tells what went over the line; layers are the layers' digests.
func (l *line) count(layers []string) (t tally) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.asked {
		t.requests += n
	}
	for _, d := range layers {
		t.layer = max(t.layer, l.asked[d])
	}
	t.bytes, t.last = l.bytes, l.last
	return t
}

// of is how many bytes were sent of what has these digests.
func (l *line) of(digests []string) (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range digests {
		n += l.sent[d]
	}
	return n
}

// behind serves next at the line's end.
func (l *line) behind(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		what := q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]
		a := asked{began: time.Now(), path: q.URL.Path, ranged: q.Header.Get("Range")}
		l.mu.Lock()
		slow, trace := l.slow, l.trace
		l.asked[what]++
		l.mu.Unlock()
		if slow {
			pause(q.Context(), lineLatency)
		}
		next.ServeHTTP(lineWriter{w, l, q.Context(), what, &a}, q)
		if a.end = time.Now(); trace != nil {
			trace(a)
		}
	})
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// lineWriter sends at the line's pace. It has no ReadFrom, which would pass by.
type lineWriter struct {
	http.ResponseWriter
	line  *line
	ctx   context.Context
	what  string
	asked *asked
}

// Write is io.Writer's.
func (w lineWriter) Write(p []byte) (int, error) {
	const (
		least = time.Millisecond // shorter waits are less exact than none
		late  = 3 * least        // what timers that were late have lost is made up for
	)
	l := w.line
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now.Add(-late)) {
		l.free = now.Add(-late)
	}
	if l.slow {
		l.free = l.free.Add(time.Duration(int64(len(p)) * int64(time.Second) / lineRate))
	}
	wait := l.free.Sub(now)
	l.bytes += int64(len(p))
	l.sent[w.what] += int64(len(p))
	l.mu.Unlock()
	if w.asked.bytes += int64(len(p)); w.asked.first.IsZero() {
		w.asked.first = now
	}
	if wait > least {
		pause(w.ctx, wait)
	}
	n, err := w.ResponseWriter.Write(p)
	l.mu.Lock()
	l.last = time.Now()
	l.mu.Unlock()
	return n, err
}

// registry is the registry of the CNCF behind a line.
type registry struct {
	line *line
	host string // of the line's end
	far  string // of the registry itself
	cmd  *exec.Cmd
	http *http.Server
	done chan error
}

// startRegistry starts it with its content in dir.
func (b *bench) startRegistry(dir string) (r *registry, err error) {
	config := b.path("registry.yml")
	text := "version: 0.1\nlog: {level: info, formatter: json, accesslog: {disabled: true}}\n" +
		fmt.Sprintf("storage: {filesystem: {rootdirectory: %q}, maintenance: {uploadpurging: {enabled: false}}}\n", dir) +
		"http: {addr: \"127.0.0.1:0\", secret: bench}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	program, err := buildRegistry()
	if err != nil {
		return nil, err
	}
	r = &registry{line: &line{}, cmd: exec.Command(program, "serve", config), done: make(chan error, 1)}
	r.line.set(false)
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	out, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for r.far == "" && lines.Scan() {
		var said struct{ Msg string }
		if json.Unmarshal(lines.Bytes(), &said) == nil {
			r.far, _ = strings.CutPrefix(said.Msg, "listening on ")
			if r.far == said.Msg {
				r.far = ""
			}
		}
	}
	if r.far == "" {
		return nil, errors.Join(errors.New("the registry does not start"), lines.Err(), r.cmd.Wait())
	}
	go func() {
		for lines.Scan() { // so that it never waits for its reader
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, r.cmd.Process.Kill())
	}
	r.host = l.Addr().String()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.far})
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	r.http = &http.Server{Handler: r.line.behind(proxy), ReadHeaderTimeout: 10 * time.Second}
	go func() { r.done <- r.http.Serve(l) }()
	return r, nil
}

// buildRegistry builds the registry that tools/registry/go.mod pins.
func buildRegistry() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	program := filepath.Join(root, "bin", "registry")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, "github.com/distribution/distribution/v3/cmd/registry")
	cmd.Dir = filepath.Join(root, "tools", "registry")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the registry: %w: %s", err, out)
	}
	return program, nil
}

func (r *registry) close() error {
	err := r.http.Close()
	if e := <-r.done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	err = errors.Join(err, r.cmd.Process.Kill())
	var exit *exec.ExitError
	if e := r.cmd.Wait(); e != nil && !errors.As(e, &exit) {
		err = errors.Join(err, e)
	}
	return err
}
