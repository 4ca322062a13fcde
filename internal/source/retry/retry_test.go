package retry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob {
		return retry.Wrap(mem.New(data), retry.Policy{})
	})
}

// inOrder makes a blob sequential.
type inOrder struct{ source.Wrapper }

func (inOrder) Sequential() bool { return true }

func TestSequentialSuite(t *testing.T) {
	sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob {
		return retry.Wrap(inOrder{source.Wrapper{Blob: mem.New(data)}}, retry.Policy{})
	})
}

func TestEveryOperationFailsOnce(t *testing.T) {
	data := sourcetest.Bytes(300000)
	for name, plain := range map[string]source.Blob{
		"ranges": mem.New(data), "sequential": inOrder{source.Wrapper{Blob: mem.New(data)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for n := int64(1); ; n++ {
					failing := sourcetest.FailNth(plain, n, nil)
					b := retry.Wrap(failing, retry.Policy{})
					got, err := sourcetest.Read(t.Context(), b, 0, int64(len(data)))
					// A failing Close of the last body reaches the caller; the bytes are there.
					if !bytes.Equal(got, data) || err != nil && !errors.Is(err, sourcetest.ErrInjected) {
						t.Fatalf("operation %d: %d bytes, %v", n, len(got), err)
					}
					if !failing.Fired() {
						break
					}
				}
			})
		})
	}
}

// scripted answers ReadRange with the errors of its list in turn, the last one
// for ever; nil is success.
type scripted struct {
	source.Wrapper
	errs  []error
	asked []int64 // offsets
}

func (s *scripted) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	err := s.errs[min(len(s.asked), len(s.errs)-1)]
	s.asked = append(s.asked, off)
	if err != nil {
		return nil, err
	}
	return s.Blob.ReadRange(ctx, off, n)
}

type busy time.Duration

func (busy) Error() string               { return "busy" }
func (busy) Temporary() bool             { return true }
func (b busy) RetryDelay() time.Duration { return time.Duration(b) }
func (busy) Unwrap() error               { return source.ErrBusy }

func TestPolicy(t *testing.T) {
	permanent := errors.New("permanent")
	for _, c := range []struct {
		name        string
		errs        []error
		policy      retry.Policy
		requests    int
		least, most time.Duration
		want        error
	}{
		{"success", []error{nil}, retry.Policy{}, 1, 0, 0, nil},
		{"permanent", []error{permanent}, retry.Policy{}, 1, 0, 0, permanent},
		{"then permanent", []error{busy(0), permanent}, retry.Policy{}, 2, 50 * time.Millisecond, 100 * time.Millisecond, permanent},
		{"twice", []error{busy(0), busy(0), nil}, retry.Policy{First: time.Second}, 3, 1500 * time.Millisecond, 3 * time.Second, nil},
		{"attempts", []error{busy(0)}, retry.Policy{Attempts: 4, First: time.Second}, 4, 3500 * time.Millisecond, 7 * time.Second, source.ErrBusy},
		{"longest", []error{busy(0)}, retry.Policy{Attempts: 11, Longest: time.Second, First: time.Second}, 11, 5 * time.Second, 10 * time.Second, source.ErrBusy},
		{"budget", []error{busy(0)}, retry.Policy{Attempts: 1000, Budget: 30 * time.Second}, 0, 30 * time.Second, 30 * time.Second, source.ErrBusy},
		{"asked to wait", []error{busy(20 * time.Second), nil}, retry.Policy{}, 2, 20 * time.Second, 20 * time.Second, nil},
		{"asked to wait for too long", []error{busy(time.Hour)}, retry.Policy{Budget: 30 * time.Second}, 2, 30 * time.Second, 30 * time.Second, source.ErrBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, data := time.Now(), sourcetest.Bytes(1000)
				s := &scripted{Wrapper: source.Wrapper{Blob: mem.New(data)}, errs: c.errs}
				got, err := sourcetest.Read(t.Context(), retry.Wrap(s, c.policy), 10, 100)
				if !errors.Is(err, c.want) || err == nil && !bytes.Equal(got, data[10:110]) {
					t.Errorf("%d bytes, error %v, want %v", len(got), err, c.want)
				}
				if took := time.Since(began); took < c.least || took > c.most {
					t.Errorf("took %v, want %v to %v", took, c.least, c.most)
				}
				if c.requests != 0 && len(s.asked) != c.requests {
					t.Errorf("%d requests, want %d", len(s.asked), c.requests)
				}
			})
		})
	}
}

// broken delivers at most part bytes of each request.
type broken struct {
	scripted
	part int64
}

func (b *broken) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.scripted.ReadRange(ctx, off, n)
	if err != nil || n <= b.part {
		return r, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, b.part), r}, nil
}

func TestGoesOnWhereTheBodyBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := sourcetest.Bytes(1 << 20)
		b := &broken{scripted{Wrapper: source.Wrapper{Blob: named{source.Wrapper{Blob: mem.New(data)}}}, errs: []error{nil}}, 100000}
		sourcetest.MustRead(t, retry.Wrap(b, retry.Policy{Attempts: 2}), data, 1, 1<<20-1)
		for i, off := range b.asked {
			if off != 1+int64(i)*100000 {
				t.Fatalf("request %d from %d", i, off)
			}
		}
		// Less than what counts as progress is not tried for ever.
		b.part = 10
		_, err := sourcetest.Read(t.Context(), retry.Wrap(b, retry.Policy{}), 0, 1<<20)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("ten bytes at a time: %v", err)
		}
	})
}

// named gives a blob a validator.
type named struct{ source.Wrapper }

func (n named) Identity() source.Identity { return source.Identity{Size: n.Size(), Validator: "v1"} }

// turning is a blob whose requests break after a part, and which has other bytes
// from its second request on.
type turning struct {
	source.Blob
	next     source.Blob
	part     int64
	requests int
}

func (b *turning) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.requests++
	if b.requests > 1 {
		return b.next.ReadRange(ctx, off, n)
	}
	r, err := b.Blob.ReadRange(ctx, off, n)
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, b.part), r}, err
}

// A source without a validator that turns to another version between two
// requests is noticed by what it sends again.
func TestVersionsAreNotMixedWithoutAValidator(t *testing.T) {
	data := sourcetest.Bytes(100000)
	turned := func(at int) source.Blob {
		other := bytes.Clone(data)
		for i := at; i < len(other); i++ {
			other[i] ^= 1
		}
		return mem.New(other)
	}
	for _, c := range []struct {
		name       string
		part       int64
		next       source.Blob
		sequential bool
		want       error
	}{
		{"same", 50000, mem.New(data), false, nil},
		{"same, little came", 7, mem.New(data), false, nil},
		{"same, sequential", 50000, mem.New(data), true, nil},
		{"other", 50000, turned(0), false, source.ErrChanged},
		{"other, little came", 7, turned(0), false, source.ErrChanged},
		{"other in the last block", 50000, turned(49990), false, source.ErrChanged},
		{"other, sequential", 50000, turned(49990), true, source.ErrChanged},
		{"one byte far before, sequential", 50000, mem.New(append([]byte{data[0] ^ 1}, data[1:]...)), true, source.ErrChanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b source.Blob = &turning{Blob: mem.New(data), next: c.next, part: c.part}
				if c.sequential {
					b = inOrder{source.Wrapper{Blob: b}}
				}
				got, err := sourcetest.Read(t.Context(), retry.Wrap(b, retry.Policy{}), 0, int64(len(data)))
				if !errors.Is(err, c.want) || !bytes.Equal(got, data[:len(got)]) || c.want == nil && len(got) != len(data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		})
	}
}

func TestWaitingEndsWithItsContextAndItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := sourcetest.Bytes(1000)
		ctx, cancel := context.WithCancel(t.Context())
		s := &scripted{Wrapper: source.Wrapper{Blob: mem.New(data)}, errs: []error{busy(time.Hour)}}
		var failures int
		policy := retry.Policy{Budget: 2 * time.Hour, Failed: func(int, error, time.Duration) { failures++ }}
		go func() { synctest.Wait(); cancel() }()
		if _, err := sourcetest.Read(ctx, retry.Wrap(s, policy), 0, 100); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
		b := &broken{scripted{Wrapper: source.Wrapper{Blob: mem.New(data)}, errs: []error{nil, busy(time.Hour)}}, 10}
		r, err := retry.Wrap(b, policy).ReadRange(t.Context(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			synctest.Wait()
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}()
		if got, err := io.ReadAll(r); err == nil || !bytes.Equal(got, data[:10]) {
			t.Fatalf("closed: %d bytes, %v", len(got), err)
		}
		synctest.Wait()
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("read after close: %v", err)
		}
		if failures != 2 {
			t.Fatalf("%d failures noted", failures)
		}
	})
}

func TestDoTriesAgainWhatIsTemporary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy, final := temporary{errors.New("busy")}, errors.New("final")
		for _, c := range []struct {
			errs []error
			want error
			n    int
		}{
			{[]error{busy, busy, nil}, nil, 3},
			{[]error{busy, final}, final, 2},
			{[]error{busy, busy, busy, busy}, busy.error, 3},
		} {
			n := 0
			err := retry.Do(t.Context(), retry.Policy{Attempts: 3}, func() error { n++; return c.errs[n-1] })
			if !errors.Is(err, c.want) || n != c.n {
				t.Errorf("%v: %v after %d attempts", c.errs, err, n)
			}
		}
	})
}

type temporary struct{ error }

func (temporary) Temporary() bool { return true }

func (t temporary) Unwrap() error { return t.error }
