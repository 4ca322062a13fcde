package prepare

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// slow is a blob that gives so many bytes each time, and then waits.
type slow struct {
	source.Blob
	each  int
	every time.Duration
}

func (s *slow) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := s.Blob.ReadRange(ctx, off, n)
	return &slowReader{r, ctx, s}, err
}

type slowReader struct {
	io.ReadCloser
	ctx context.Context
	s   *slow
}

func (r *slowReader) Read(p []byte) (int, error) {
	select {
	case <-time.After(r.s.every):
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
	return r.ReadCloser.Read(p[:min(len(p), r.s.each)])
}

func gzipOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// slowIndex is an index whose zTOC comes slowly.
func slowIndex(t *testing.T, each int, every time.Duration) *index {
	t.Helper()
	layer := gzipOf(t, toctest.Tar(t, []toctest.File{toctest.Reg("a", toctest.Random(1, 100_000))}))
	z, err := soci.Build(t.Context(), bytes.NewReader(layer), soci.BuildOptions{SpanSize: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	read, err := soci.Open(t.Context(), mem.New(z), int64(len(layer)))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	x := &index{
		id: "0123", library: b.Library, digest: digest.FromBytes(z), remote: &slow{mem.New(z), each, every}, turn: make(chan struct{}, 1),
	}
	if x.Reader, err = soci.NewReader(read.Spans, ztocBlob{x}); err != nil {
		t.Fatal(err)
	}
	return x
}

// waits is a Filler that waits for an index, and an object of which nothing is present.
type waits struct {
	*index
	err error
}

func (w waits) Fill(ctx context.Context, _ ondemand.ObjectID, _ ondemand.Range) error {
	return errors.Join(w.settle(ctx), w.err)
}

type hollow struct{}

func (hollow) ID() ondemand.ObjectID                     { return "0123" }
func (hollow) Size() int64                               { return 8192 }
func (hollow) Has(ondemand.Range) bool                   { return false }
func (hollow) Complete() bool                            { return false }
func (hollow) Missing(r ondemand.Range) []ondemand.Range { return []ondemand.Range{r} }

var errSettled = errors.New("it is settled")

// settleUnder begins to read the index in the background, and then two readers
// with a deadline, and returns what they got.
func settleUnder(t *testing.T, x *index, background bool, deadline time.Duration) []error {
	t.Helper()
	table := ondemand.NewTable(waits{x, errSettled}, ondemand.TableOptions{Deadline: deadline})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if !background {
			return
		}
		if err := x.settle(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	synctest.Wait()
	answers := make(chan error, 2)
	for n := range int64(2) {
		table.Submit(hollow{}, ondemand.Range{Off: n * 4096, Len: 4096}, ondemand.Reader{}, func(err error) { answers <- err })
	}
	got := []error{<-answers, <-answers}
	cancel()
	<-ended
	if err := table.Close(); err != nil {
		t.Error(err)
	}
	return got
}

// A reader waits for an index as long as bytes of it keep coming, whoever asked for
// them, and no longer.
func TestReaderOfAnIndexThatComesSlowly(t *testing.T) {
	for name, c := range map[string]struct {
		each       int
		background bool
		want       error
	}{
		"asked for in the background": {4096, true, errSettled}, "asked for by a reader": {4096, false, errSettled},
		"too slowly": {1000, true, context.DeadlineExceeded}, "too slowly for a reader": {1000, false, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := slowIndex(t, c.each, 2*time.Second)
				began := time.Now()
				for _, err := range settleUnder(t, x, c.background, 3*time.Second) {
					if !errors.Is(err, c.want) {
						t.Errorf("a reader got %v, want %v", err, c.want)
					}
				}
				if took := time.Since(began); errors.Is(c.want, errSettled) && took < 20*time.Second {
					t.Errorf("it came in %v", took)
				}
			})
		})
	}
}
