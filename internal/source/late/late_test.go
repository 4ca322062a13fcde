package late_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/late"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob {
		return late.New(late.Opener{Size: int64(len(data)), Open: func(context.Context) (source.Blob, error) { return mem.New(data), nil }})
	})
}

func TestOpenedOnceBeforeTheFirstByte(t *testing.T) {
	var opened, bound atomic.Int32
	data := sourcetest.Bytes(10000)
	b := late.New(late.Opener{
		Size: 10000,
		Open: func(context.Context) (source.Blob, error) {
			opened.Add(1)
			return mem.Pattern(10000, 7), nil
		},
		Bound: func(got source.Blob) error {
			if source.IdentityOf(got).Validator == "" {
				t.Error("bound without an identity")
			}
			bound.Add(1)
			return nil
		},
	})
	if source.IdentityOf(b) != (source.Identity{Size: 10000}) || opened.Load() != 0 {
		t.Fatalf("before: %+v", source.IdentityOf(b))
	}
	if _, err := mem.PatternAt(7).ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for range 20 {
		go func() {
			_, err := sourcetest.Read(t.Context(), b, 100, 200)
			done <- err
		}()
	}
	for range 20 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	sourcetest.MustRead(t, b, data, 0, 10000)
	if opened.Load() != 1 || bound.Load() != 1 || source.IdentityOf(b).Validator == "" {
		t.Errorf("opened %d times, bound %d times, %+v", opened.Load(), bound.Load(), source.IdentityOf(b))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatCannotBeOpenedIsTriedAgain(t *testing.T) {
	broken := errors.New("broken")
	for _, first := range []late.Opener{
		{Open: func(context.Context) (source.Blob, error) { return nil, broken }},
		{Open: func(context.Context) (source.Blob, error) { return mem.New(make([]byte, 99)), nil }},
		{
			Open:  func(context.Context) (source.Blob, error) { return mem.New(make([]byte, 100)), nil },
			Bound: func(source.Blob) error { return broken },
		},
	} {
		tries := 0
		b := late.New(late.Opener{
			Size: 100,
			Open: func(ctx context.Context) (source.Blob, error) {
				if tries++; tries == 1 {
					return first.Open(ctx)
				}
				return mem.New(make([]byte, 100)), nil
			},
			Bound: func(got source.Blob) error {
				if tries == 1 && first.Bound != nil {
					return first.Bound(got)
				}
				return nil
			},
		})
		_, err := sourcetest.Read(t.Context(), b, 0, 10)
		if !errors.Is(err, broken) && !errors.Is(err, source.ErrChanged) {
			t.Errorf("first: %v", err)
		}
		if _, err := sourcetest.Read(t.Context(), b, 0, 10); err != nil || tries != 2 {
			t.Errorf("after %d tries: %v", tries, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fromStart gives its bytes only from the start on.
type fromStart struct{ source.Blob }

func (fromStart) Sequential() bool { return true }

func (b fromStart) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off > 0 {
		return nil, source.ErrRange
	}
	return b.Blob.ReadRange(ctx, off, n)
}

func TestSourceWithoutRangesIsReadFromItsStart(t *testing.T) {
	data := sourcetest.Bytes(100000)
	b := late.New(late.Opener{Size: 100000, Open: func(context.Context) (source.Blob, error) { return fromStart{mem.New(data)}, nil }})
	for _, r := range [][2]int64{{5, 10}, {0, 100000}, {99999, 1}} {
		sourcetest.MustRead(t, b, data, r[0], r[1])
	}
}
