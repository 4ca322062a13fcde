package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// tiles is an endless pattern.
type tiles struct{}

func (tiles) ReadAt(p []byte, off int64) (int, error) {
	readPattern(p, off)
	return len(p), nil
}

// overHTTP serves size bytes of the pattern from a file over loopback.
func overHTTP(b *testing.B, size int64) source.Blob {
	b.Helper()
	file, err := os.CreateTemp(b.TempDir(), "blob")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(file, io.NewSectionReader(tiles{}, 0, size)); err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"pattern"`)
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(file, 0, size))
	}))
	b.Cleanup(func() {
		server.Close()
		if err := file.Close(); err != nil {
			b.Error(err)
		}
	})
	return &remote{size, server}
}

// remote is a blob of a server that is known to answer ranges.
type remote struct {
	size   int64
	server *httptest.Server
}

func (r *remote) Size() int64  { return r.size }
func (r *remote) Close() error { return nil }

func (r *remote) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.server.URL, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := r.server.Client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		return nil, errors.Join(errors.New(resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}

// onDisk makes an object of a cache root.
func onDisk(b *testing.B, root *cache.Root, i int, size int64) *cache.Object {
	b.Helper()
	id := []byte(testID)
	for k := 0; i > 0; k, i = k+1, i/10 {
		id[k] = byte('0' + i%10)
	}
	o, err := root.Create(cache.Meta{ID: ondemand.ObjectID(id), Size: size})
	if err != nil {
		b.Fatal(err)
	}
	return o
}

func openRoot(b *testing.B) *cache.Root {
	b.Helper()
	root, err := cache.OpenRoot(b.TempDir(), cache.RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := root.Close(); err != nil {
			b.Error(err)
		}
	})
	return root
}

// sequential reads an object from its start as a front end's reader would.
func sequential(b *testing.B, f *Fetcher, o *Object, step int64) {
	for off := int64(0); off < o.Size(); off += step {
		r := ondemand.Range{Off: off, Len: min(step, o.Size()-off)}
		if !o.Has(r) {
			if err := f.Fill(b.Context(), o.ID(), r); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkSequential fills 256 MiB over loopback into a cache object: plain is
// one GET written to a file, read is a reader of 128 KiB at a time, hydrate is
// Hydrate. All but plain include making the data durable.
func BenchmarkSequential(b *testing.B) {
	const size = 256 << 20
	blob := overHTTP(b, size)
	root := openRoot(b)
	n := 0
	fill := func(b *testing.B, bring func(f *Fetcher, o *Object)) {
		b.SetBytes(size)
		b.ReportAllocs()
		for b.Loop() {
			f := New(Options{})
			n++
			kept := onDisk(b, root, n, size)
			o, err := f.Add(Cached(kept), blob)
			if err != nil {
				b.Fatal(err)
			}
			bring(f, o)
			b.ReportMetric(float64(f.Stats(o.ID()).Requests), "requests/op")
			f.Close()
			b.StopTimer()
			if err := root.Remove(kept.ID()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			plain(b, blob)
		}
	})
	b.Run("read", func(b *testing.B) {
		fill(b, func(f *Fetcher, o *Object) { sequential(b, f, o, 128<<10) })
	})
	b.Run("hydrate", func(b *testing.B) {
		fill(b, func(f *Fetcher, o *Object) {
			if err := f.Hydrate(b.Context(), o.ID(), nil); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// plain writes the whole of blob to a file.
func plain(b *testing.B, blob source.Blob) {
	body, err := blob.ReadRange(b.Context(), 0, blob.Size())
	if err != nil {
		b.Fatal(err)
	}
	file, err := os.CreateTemp(b.TempDir(), "plain")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, piece)
	// Without ReadFrom, which would splice: the bytes are to pass this process.
	if _, err := io.CopyBuffer(struct{ io.Writer }{file}, struct{ io.Reader }{body}, buf); err != nil {
		b.Fatal(err)
	}
	for _, err := range []error{body.Close(), file.Close(), os.Remove(file.Name())} {
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMiss is one read of 4 KiB at random of a blob in memory into a
// cache object.
func BenchmarkMiss(b *testing.B) {
	const size = 16 << 30
	root := openRoot(b)
	kept := onDisk(b, root, 1, size)
	f := New(Options{})
	defer f.Close()
	o, err := f.Add(Cached(kept), &scripted{size: size, free: true})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r := ondemand.Range{Off: rand.Int64N(size/4096) * 4096, Len: 4096}
		if err := f.Fill(b.Context(), o.ID(), r); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(f.Stats(o.ID()).Fetched)/float64(b.N), "fetched-B/op")
}

// BenchmarkHas is the question of every read event, with sixteen readers followed.
func BenchmarkHas(b *testing.B) {
	const size = 1 << 30
	kept := newKept(1 << 20)
	kept.size, kept.Presence = size, ondemand.NewPresence(size)
	kept.Set(ondemand.Range{Len: size})
	o := &Object{cache: kept}
	for i := range headCount {
		o.heads.follow(i, ondemand.Range{Off: int64(i) << 20, Len: 4096})
	}
	b.ReportAllocs()
	for b.Loop() {
		o.Has(ondemand.Range{Off: 512 << 20, Len: 128 << 10})
	}
}
