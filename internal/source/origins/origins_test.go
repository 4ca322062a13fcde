package origins_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// failing is an origin that can be told to fail, and counts who asks.
type failing struct {
	source.Blob
	err    atomic.Pointer[error] // of ReadRange; nil: none
	after  int64                 // bytes that come before body fails; 0: it does not
	body   error
	asked  atomic.Int32
	closed atomic.Bool
	seq    bool
}

func (f *failing) fail(err error) { f.err.Store(&err) }

func (f *failing) Sequential() bool { return f.seq }

func (f *failing) Close() error {
	f.closed.Store(true)
	return f.Blob.Close()
}

func (f *failing) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	f.asked.Add(1)
	if err := f.err.Load(); err != nil && *err != nil {
		return nil, *err
	}
	r, err := f.Blob.ReadRange(ctx, off, n)
	if err != nil || f.after == 0 {
		return r, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, f.after), broken{f.body}), r}, nil
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

const size = 10000

func of(data []byte) *failing { return &failing{Blob: mem.New(data)} }

// made adds origins, each at a place of its own.
func made(t *testing.T, from ...*failing) *origins.Blob {
	t.Helper()
	b := origins.New(source.Identity{Size: from[0].Size(), Validator: "v"})
	for n, f := range from {
		if err := b.Add(f, string(rune('a'+n))); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

var errGone = errors.New("gone for good")

func TestSuite(t *testing.T) {
	for name, first := range map[string]*failing{"one": nil, "the first fails": {}} {
		t.Run(name, func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
				if first == nil {
					return made(t, of(data))
				}
				bad := of(data)
				bad.fail(errGone)
				return made(t, bad, of(data))
			})
		})
	}
}

func TestOneThatFailsIsAskedLast(t *testing.T) {
	data := sourcetest.Bytes(size)
	first, second := of(data), of(data)
	b := made(t, first, second)
	sourcetest.MustRead(t, b, data, 0, size)
	if second.asked.Load() != 0 {
		t.Error("the second is asked while the first works")
	}
	first.fail(errGone)
	for range 5 {
		sourcetest.MustRead(t, b, data, 100, 1000)
	}
	if n := first.asked.Load(); n != 2 {
		t.Errorf("the first was asked %d times", n)
	}
	second.fail(source.ErrNotFound)
	_, err := sourcetest.Read(t.Context(), b, 0, 10)
	if !errors.Is(err, errGone) || !errors.Is(err, source.ErrNotFound) || source.Temporary(err) || !strings.Contains(err.Error(), "; ") {
		t.Errorf("all fail: %v", err)
	}
	first.fail(nil)
	sourcetest.MustRead(t, b, data, 0, size)
}

// What broke in the middle goes on elsewhere, whatever it was.
func TestBodiesThatBreak(t *testing.T) {
	data := sourcetest.Bytes(size)
	for _, err := range []error{errGone, os.ErrClosed, source.ErrChanged, io.ErrUnexpectedEOF} {
		first, second := of(data), of(data)
		first.after, first.body = 700, err
		b := retry.Wrap(made(t, first, second), retry.Policy{First: time.Millisecond})
		sourcetest.MustRead(t, b, data, 50, 2000)
		if first.asked.Load() != 1 || second.asked.Load() != 1 {
			t.Errorf("%v: asked %d and %d times", err, first.asked.Load(), second.asked.Load())
		}
		second.after, second.body = 300, errGone
		if _, got := sourcetest.Read(t.Context(), b, 0, 5000); !errors.Is(got, errGone) && !errors.Is(got, err) {
			t.Errorf("both break: %v", got)
		}
		alone := made(t, first)
		if _, got := sourcetest.Read(t.Context(), alone, 0, 2000); !errors.Is(got, err) || source.Temporary(got) != source.Temporary(err) {
			t.Errorf("alone: %v", got)
		}
	}
}

type busy struct{ error }

func (busy) Temporary() bool             { return true }
func (busy) RetryDelay() time.Duration   { return time.Minute }
func (b busy) Unwrap() error             { return b.error }
func (f *failing) askedTimes(n int) bool { return int(f.asked.Load()) == n }

func TestErrorOfAllIsTemporaryWhereOneIs(t *testing.T) {
	first, second := of(sourcetest.Bytes(size)), of(sourcetest.Bytes(size))
	b := made(t, first, second)
	first.fail(errGone)
	second.fail(busy{source.ErrBusy})
	_, err := b.ReadRange(t.Context(), 0, 1)
	if !source.Temporary(err) || source.RetryDelay(err) != time.Minute || !errors.Is(err, source.ErrBusy) {
		t.Errorf("%v, %v", err, source.RetryDelay(err))
	}
}

// Of those at one place one is asked when it fails.
func TestOnePlaceIsAskedOnce(t *testing.T) {
	data := sourcetest.Bytes(size)
	b := origins.New(source.Identity{Size: size})
	var same []*failing
	for range 10 {
		f := of(data)
		f.fail(errGone)
		same = append(same, f)
		if err := b.Add(f, "same"); err != nil {
			t.Fatal(err)
		}
	}
	asked := func() (n int32) {
		for _, f := range same {
			n += f.asked.Load()
		}
		return n
	}
	if _, err := sourcetest.Read(t.Context(), b, 0, 10); !errors.Is(err, errGone) || asked() != 1 {
		t.Errorf("asked %d times, %v", asked(), err)
	}
	other := of(data)
	if err := b.Add(other, "other"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		sourcetest.MustRead(t, b, data, 0, size)
	}
	if asked() != 1 || !other.askedTimes(3) {
		t.Errorf("asked %d times and %d times", asked(), other.asked.Load())
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestOriginsComeAndGo(t *testing.T) {
	data := sourcetest.Bytes(size)
	first, second := of(data), of(data)
	b := made(t, first, second)
	r, err := b.ReadRange(t.Context(), 0, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(first); err != nil || !first.closed.Load() {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil && !source.Temporary(err) || !bytes.Equal(got, data[:len(got)]) || len(got) < size && err == nil {
		t.Errorf("what was being read: %d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	sourcetest.MustRead(t, b, data, 0, size)
	if err := b.Remove(second); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadRange(t.Context(), 0, 1); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("without any: %v", err)
	}
	third := of(data)
	if err := b.Add(third, "c"); err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, b, data, 0, size)
	short := of(data[1:])
	if err := b.Add(short, "d"); !errors.Is(err, source.ErrChanged) || !short.closed.Load() {
		t.Errorf("another size: %v", err)
	}
	if err := b.Close(); err != nil || !third.closed.Load() {
		t.Error(err)
	}
	late := of(data)
	if err := b.Add(late, "e"); !errors.Is(err, os.ErrClosed) || !late.closed.Load() {
		t.Errorf("after the end: %v", err)
	}
}

// An origin without ranges is no help behind the start, and none is asked there.
func TestOneHasNoRanges(t *testing.T) {
	data := sourcetest.Bytes(size)
	first, second := of(data), of(data)
	first.seq = true
	b := made(t, first)
	if !source.IsSequential(b) {
		t.Error("no ranges, and not sequential")
	}
	if err := b.Add(second, "b"); err != nil || source.IsSequential(b) {
		t.Fatalf("sequential: %t, %v", source.IsSequential(b), err)
	}
	sourcetest.MustRead(t, b, data, 100, 100)
	if first.asked.Load() != 0 {
		t.Error("it was asked for a range")
	}
	if id := source.IdentityOf(b); id.Validator != "v" || id.Size != size {
		t.Errorf("%+v", id)
	}
}
