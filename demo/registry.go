package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func platform() (system, architecture string) { return runtime.GOOS, runtime.GOARCH }

// blobs is where the registry's files lie, by their digests.
func (d *demo) blobs() string { return filepath.Join(d.work, "registry") }

// blobFiles are the registry's blobs: files in a directory. Unlike the library's
// own, it does not digest a whole file for each request.
type blobFiles string

func (b blobFiles) open(h v1.Hash) (*os.File, error) {
	f, err := os.Open(filepath.Join(string(b), h.Hex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

// Get is registry.BlobHandler's.
func (b blobFiles) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	return b.open(h)
}

// Stat is registry.BlobStatHandler's.
func (b blobFiles) Stat(_ context.Context, _ string, h v1.Hash) (size int64, err error) {
	f, err := b.open(h)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err == nil {
		size = info.Size()
	}
	return size, errors.Join(err, f.Close())
}

// Put is registry.BlobPutHandler's.
func (b blobFiles) Put(_ context.Context, _ string, h v1.Hash, data io.ReadCloser) error {
	var all bytes.Buffer
	if _, err := all.ReadFrom(data); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(b), h.Hex), all.Bytes(), 0o600)
}

// line is the way to the registry: it counts, and is as slow as it is told to.
type line struct {
	latency time.Duration
	rate    int64

	slow            atomic.Bool
	bytes, requests atomic.Int64

	mu   sync.Mutex
	free time.Time // when it has sent all that it was given
}

// behind serves next at the line's end.
func (l *line) behind(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		l.requests.Add(1)
		if l.slow.Load() && !wait(q.Context(), l.latency) {
			return
		}
		next.ServeHTTP(slowWriter{w, l, q.Context()}, q)
	})
}

// wait waits, and tells whether the context still stands.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// take is how long n bytes have to wait for those before them.
func (l *line) take(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	return l.free.Sub(now)
}

// slowWriter sends at the line's pace. It has no ReadFrom, which would pass by.
type slowWriter struct {
	http.ResponseWriter
	line *line
	ctx  context.Context
}

// Write is io.Writer's.
func (w slowWriter) Write(p []byte) (int, error) {
	// Shorter waits than this are less exact than none.
	const least = 2 * time.Millisecond
	if w.line.slow.Load() {
		if d := w.line.take(len(p)); d > least && !wait(w.ctx, d) {
			return 0, w.ctx.Err()
		}
	}
	w.line.bytes.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

// serve starts the registry. The function that it returns ends it.
func (d *demo) serve() (host string, end func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	content := registry.New(registry.WithBlobHandler(blobFiles(d.blobs())), registry.Logger(log.New(io.Discard, "", 0)))
	server := &http.Server{Handler: d.line.behind(content), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	return l.Addr().String(), func() error {
		err := server.Close()
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	}, nil
}

// push pushes the image, whose layers the registry has already.
func push(ctx context.Context, ref string, img v1.Image) error {
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if err := remote.Write(tag, img, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}
