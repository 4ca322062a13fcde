package device

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/source/trace"
	"github.com/lacunafs/lacuna/internal/toc"
)

// lied is the device of a layer that several origins have, with all that is around them
// in a daemon. There is one place for a request, so that none may be left open.
func lied(t *testing.T, s *sample, names ...string) (*Blob, []*sourcetest.Liar) {
	t.Helper()
	b := origins.New(source.Identity{Size: int64(len(s.blob)), Validator: "v"})
	group := limit.NewGroup(1)
	var all []*sourcetest.Liar
	for _, name := range names {
		l := &sourcetest.Liar{Blob: mem.New(s.blob), Name: name}
		all = append(all, l)
		if err := b.Add(group.Demand(trace.NewTally(nil).Wrap(l)), name); err != nil {
			t.Fatal(err)
		}
	}
	return open(t, s, retry.Wrap(b, retry.Policy{First: time.Millisecond})), all
}

func requests(all []*sourcetest.Liar) (n int) {
	for _, l := range all {
		asked, _ := l.Asked()
		n += asked
	}
	return n
}

// Wrong bytes of one origin are never shown, and are had from another.
func TestWrongBytesAreHadElsewhere(t *testing.T) {
	for name, l := range layouts() {
		if l.noDigests {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := newSample(t, l, false, someFiles()...)
			end := int64(len(s.blob))
			// Data that is another, and what is no data of the codec at all.
			for _, lie := range [][2]int64{{0, end}, {0, 3}, {end / 3, end/3 + 1}, {end / 2, end}} {
				d, all := lied(t, s, "a", "b", "c")
				all[0].Lie(lie[0], lie[1])
				sourcetest.MustRead(t, d, s.device, 0, d.Size())
				wrong, _ := all[0].Asked()
				if _, right := all[1].Asked(); right != 0 {
					t.Errorf("%v: right bytes were refuted", lie)
				}
				sourcetest.MustRead(t, d, s.device, 0, d.Size())
				if again, _ := all[0].Asked(); again != wrong && lie[0] == 0 && lie[1] == end {
					t.Errorf("%v: who gave wrong bytes was asked again at once", lie)
				}
			}
		})
	}
}

// Each origin has other bytes wrong: together they have all.
func TestEachOriginIsWrongElsewhere(t *testing.T) {
	s := newSample(t, layout{codec: toc.Zstd, chunk: 5_000, shared: 2}, true, someFiles()...)
	end := int64(len(s.blob))
	d, all := lied(t, s, "a", "b", "c")
	for n := range int64(3) {
		all[n].Lie(n*end/3, (n+1)*end/3-5_100)
	}
	var readers sync.WaitGroup
	for n := range int64(4) {
		readers.Go(func() {
			for off := n * 1000; off < d.Size(); off += 30_000 {
				n := min(100_000, d.Size()-off)
				got, err := sourcetest.Read(t.Context(), d, off, n)
				if err != nil || !bytes.Equal(got, s.device[off:off+n]) {
					t.Errorf("[%d,+%d): %d bytes, %v", off, n, len(got), err)
				}
			}
		})
	}
	readers.Wait()
}

// Where all origins are wrong each is asked once for a chunk, and the error names them.
func TestAllOriginsAreWrong(t *testing.T) {
	for name, l := range layouts() {
		if l.noDigests {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := newSample(t, l, false, someFiles()...)
			d, all := lied(t, s, "a.example", "b.example", "c.example")
			for _, o := range all {
				o.Lie(0, int64(len(s.blob)))
			}
			got, err := sourcetest.Read(t.Context(), d, 0, d.Size())
			if !errors.Is(err, source.ErrNotBytes) || len(got) > 0 {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if !strings.Contains(err.Error(), "(wrong bytes came from a.example, b.example, c.example)") {
				t.Errorf("nobody is named: %v", err)
			}
			if n := requests(all); n != 3 {
				t.Errorf("%d requests", n)
			}
			for _, o := range all {
				o.Lie(0, 0)
			}
			sourcetest.MustRead(t, d, s.device, 0, d.Size())
		})
	}
}

// cutBlob is a blob whose bodies break after n bytes.
type cutBlob struct {
	source.Blob
	n int64
}

func (c cutBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := c.Blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return source.Exact(ctx, struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, c.n), r}, n), nil
}

// A layer that fails is not one that lies: nobody is blamed.
func TestFailureIsNoLie(t *testing.T) {
	for _, codec := range []toc.Codec{toc.Gzip, toc.Zstd, toc.Stored} {
		s := newSample(t, layout{codec: codec, chunk: 50_000, shared: 1}, false, someFiles()...)
		l := &sourcetest.Liar{Blob: cutBlob{mem.New(s.blob), int64(len(s.blob)) / 2}, Name: "a"}
		d := open(t, s, l)
		_, err := sourcetest.Read(t.Context(), d, 0, d.Size())
		var wrong *source.WrongError
		if err == nil || errors.As(err, &wrong) {
			t.Errorf("%v: %v", codec, err)
		}
		if _, refuted := l.Asked(); refuted != 0 {
			t.Errorf("%v: refuted", codec)
		}
	}
}
