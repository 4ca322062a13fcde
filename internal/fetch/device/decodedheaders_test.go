package device

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// lying makes a device of three files, of which the second's header is another's.
func lying(t *testing.T) (d *Decoded, layer *spanned, want []byte) {
	t.Helper()
	d, layer, want = newDecoded(t, 50_000, 70_000, toctest.Random(1, 100_000), toctest.Random(2, 100_000), toctest.Random(3, 100_000))
	d.headers.Headers.(*marked).lies = map[int]bool{1: true}
	return d, layer, want
}

const fileBlocks = 25 * toc.BlockSize // of each of the files

// wantRefused wants no byte of [off, off+n), and which error it is.
func wantRefused(t *testing.T, d *Decoded, off, n int64) {
	t.Helper()
	r, err := d.ReadRange(t.Context(), off, n)
	var got []byte
	if err == nil {
		got, err = io.ReadAll(r)
		err = errors.Join(err, r.Close())
	}
	if !errors.Is(err, toc.ErrInvalid) || source.Temporary(err) || len(got) > 0 {
		t.Errorf("[%d,+%d): %d bytes, %v", off, n, len(got), err)
	}
}

// A file whose header is another's gives no byte, wherever it is begun, and the files
// beside it give theirs.
func TestFileWithAnotherHeader(t *testing.T) {
	for name, begin := range map[string]int64{"at its start": 0, "in its middle": 60_000} {
		t.Run(name, func(t *testing.T) {
			d, _, want := lying(t)
			if from, n := d.Part(fileBlocks + 1); from != 0 || n != d.Size() {
				t.Errorf("a part is [%d,+%d)", from, n)
			}
			for range 3 {
				wantRefused(t, d, fileBlocks+begin, 4096)
			}
			for n := range int64(3) {
				if from, m := d.Part(n*fileBlocks + 1); from != n*fileBlocks || m != fileBlocks {
					t.Errorf("part %d is [%d,+%d)", n, from, m)
				}
				if from, m := d.Part((n+1)*fileBlocks - 1); from != n*fileBlocks || m != fileBlocks {
					t.Errorf("part %d ends in [%d,+%d)", n, from, m)
				}
			}
			sourcetest.MustRead(t, d, want, 0, fileBlocks)
			sourcetest.MustRead(t, d, want, 2*fileBlocks+5000, 5000)
			sourcetest.MustRead(t, d, want, 2*fileBlocks, fileBlocks)
			wantRefused(t, d, fileBlocks, fileBlocks)
		})
	}
}

// Of a range of several files what is before the wrong one comes, and no more.
func TestRangeUpToAnotherHeader(t *testing.T) {
	d, layer, want := lying(t)
	r, err := d.ReadRange(t.Context(), 0, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); !errors.Is(err, toc.ErrInvalid) {
		t.Error(err)
	}
	if string(got) != string(want[:fileBlocks]) {
		t.Errorf("%d bytes, want those of the first file", len(got))
	}
	if len(layer.asked) != 1 {
		t.Errorf("%d requests", len(layer.asked))
	}
}

// The header of a file that is begun in its middle is read once, however many begin it
// at the same time, and however often.
func TestHeaderIsReadOnce(t *testing.T) {
	d, layer, want := newDecoded(t, 20_000, 70_000, toctest.Random(1, 100_000), toctest.Random(2, 500_000))
	var readers sync.WaitGroup
	for n := range int64(16) {
		readers.Go(func() { sourcetest.MustRead(t, d, want, fileBlocks+10_000+n*4096, 4096) })
	}
	readers.Wait()
	sourcetest.MustRead(t, d, want, fileBlocks+200_000, 4096)
	header := 0
	for _, r := range layer.asked {
		if r[1] == d.headers.Before(1) {
			header++
		}
	}
	if header != 1 || len(layer.asked) != 18 {
		t.Errorf("%d requests, %d of them for the header: %v", len(layer.asked), header, layer.asked)
	}
}

// stuck never gives a byte.
type stuck struct {
	source.Blob
	asked chan struct{}
}

func (s *stuck) ReadRange(ctx context.Context, _, n int64) (io.ReadCloser, error) {
	s.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// Who gives up while a header comes leaves the others waiting, who ask themselves.
func TestHeaderIsAskedForAgain(t *testing.T) {
	d, layer, want := newDecoded(t, 20_000, 70_000, toctest.Random(1, 100_000))
	s := &stuck{layer, make(chan struct{})}
	d.layer = s
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		r, err := d.ReadRange(ctx, 50_000, 1)
		if err == nil {
			err = r.Close()
		}
		failed <- err
	}()
	<-s.asked
	d.layer = layer
	done := make(chan struct{})
	go func() {
		defer close(done)
		sourcetest.MustRead(t, d, want, 50_000, 10)
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-done
}
