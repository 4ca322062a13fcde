// Package sourcetest holds what tests of sources share: a conformance suite
// that every source and every wrapper runs, an HTTP server that answers rightly until it is
// told how to misbehave, and a blob that fails its Nth operation.
package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
)

// Open returns a blob that has the bytes of data. The suite closes it.
type Open func(t *testing.T, data []byte) source.Blob

// Run tests that the blobs of open do what source.Blob promises, sentence by
// sentence. A sequential blob is asked for ranges from offset 0 only.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, Open)
	}{
		{"SizeNeverChanges", testSize},
		{"RangesHaveTheirBytes", testRanges},
		{"EndsWithEOFForGood", testEOF},
		{"SmallReads", testSmallReads},
		{"BadRangesAreErrors", testBadRanges},
		{"EmptyBlob", testEmpty},
		{"ThousandsOfRangesAtOnce", testConcurrent},
		{"CancelBeforeTheRequest", testCancelBefore},
		{"CancelWhileReading", testCancelWhileReading},
		{"ReaderClosedEarly", testEarlyClose},
		{"ReaderClosedWhileReading", testCloseWhileReading},
		{"BlobClosedTwice", testCloseTwice},
		{"BlobClosedWhileReading", testCloseBlobWhileReading},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
}

// Bytes returns n bytes that look random and are the same for every run.
func Bytes(n int) []byte {
	data := make([]byte, n)
	seed := [32]byte{'l', 'a', 'c', 'u', 'n', 'a'}
	if _, err := rand.NewChaCha8(seed).Read(data); err != nil {
		panic(fmt.Sprintf("sourcetest: internal error: %v", err)) // ChaCha8.Read never fails
	}
	return data
}

// Read reads the range [off, off+n) of b to its end.
func Read(ctx context.Context, b source.Blob, off, n int64) ([]byte, error) {
	r, err := b.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// MustRead reads a range of b and compares it with the same range of data.
func MustRead(t testing.TB, b source.Blob, data []byte, off, n int64) {
	t.Helper()
	got, err := Read(t.Context(), b, off, n)
	if err != nil {
		t.Fatalf("read [%d,+%d): %v", off, n, err)
	}
	if !bytes.Equal(got, data[off:off+n]) {
		t.Fatalf("read [%d,+%d): wrong bytes (%d of them)", off, n, len(got))
	}
}

func start(t *testing.T, open Open, data []byte) source.Blob {
	t.Helper()
	b := open(t, data)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close blob: %v", err)
		}
	})
	return b
}

func testSize(t *testing.T, open Open) {
	data := Bytes(12345)
	b := start(t, open, data)
	for range 3 {
		if b.Size() != int64(len(data)) || source.IdentityOf(b).Size != b.Size() {
			t.Fatalf("size %d, identity %+v, want %d", b.Size(), source.IdentityOf(b), len(data))
		}
		MustRead(t, b, data, 0, 100)
	}
}

func testRanges(t *testing.T, open Open) {
	for _, size := range []int64{1, 2, 4095, 4096, 4097, 300000} {
		data := Bytes(int(size))
		b := start(t, open, data)
		for _, r := range [][2]int64{
			{0, size}, {0, 1}, {size - 1, 1}, {size / 2, size - size/2}, {size / 3, 1}, {0, size/2 + 1},
		} {
			if r[0] == 0 || !source.IsSequential(b) {
				MustRead(t, b, data, r[0], r[1])
			}
		}
	}
}

func testEOF(t *testing.T, open Open) {
	data := Bytes(10000)
	r, err := start(t, open, data).ReadRange(t.Context(), 0, 5000)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[:5000]) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	for range 2 {
		if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read behind the end: %d bytes, %v", n, err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func testSmallReads(t *testing.T, open Open) {
	data := Bytes(1000)
	r, err := start(t, open, data).ReadRange(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for one := make([]byte, 3); err == nil; {
		var n int
		n, err = r.Read(one[:1+len(got)%3])
		got = append(got, one[:n]...)
	}
	if !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func testBadRanges(t *testing.T, open Open) {
	const big = 1<<63 - 1
	b := start(t, open, Bytes(1000))
	bad := [][2]int64{
		{0, 0}, {0, -1}, {-1, 1}, {-1, 2}, {0, 1001}, {1, 1000}, {999, 2}, {1000, 0}, {1000, 1},
		{1001, 1}, {big, 1}, {1, big}, {big, big}, {-big, big}, {10, -5},
	}
	if source.IsSequential(b) {
		bad = append(bad, [2]int64{1, 1}, [2]int64{500, 500})
	}
	for _, r := range bad {
		rc, err := b.ReadRange(t.Context(), r[0], r[1])
		if !errors.Is(err, source.ErrRange) || rc != nil {
			t.Errorf("range [%d,+%d): reader %v, error %v", r[0], r[1], rc, err)
		}
	}
}

func testEmpty(t *testing.T, open Open) {
	b := start(t, open, nil)
	if b.Size() != 0 {
		t.Fatalf("size %d", b.Size())
	}
	if _, err := b.ReadRange(t.Context(), 0, 1); !errors.Is(err, source.ErrRange) {
		t.Fatalf("read of an empty blob: %v", err)
	}
}

func testConcurrent(t *testing.T, open Open) {
	const size, readers = 1 << 20, 100
	rounds := 20
	data := Bytes(size)
	b := start(t, open, data)
	if source.IsSequential(b) {
		rounds = 2 // each part of a whole may cost a connection
	}
	var all sync.WaitGroup
	for i := range readers {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				off := rnd.Int64N(size)
				n := 1 + rnd.Int64N(min(size-off, 9000))
				if source.IsSequential(b) {
					off = 0
				}
				got, err := Read(t.Context(), b, off, n)
				if err != nil || !bytes.Equal(got, data[off:off+n]) {
					t.Errorf("reader %d (seed): [%d,+%d): %d bytes, %v", i, off, n, len(got), err)
					return
				}
			}
		})
	}
	all.Wait()
}

func testCancelBefore(t *testing.T, open Open) {
	b := start(t, open, Bytes(1000))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, b, 0, 1000); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
}

func testCancelWhileReading(t *testing.T, open Open) {
	const size = 8 << 20
	data := Bytes(size)
	b := start(t, open, data)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := b.ReadRange(ctx, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:1000]) {
		t.Fatalf("first bytes: %v", err)
	}
	cancel()
	if rest, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Fatalf("after cancel: %d bytes, %v", len(rest), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	MustRead(t, b, data, 0, 5000)
}

func testEarlyClose(t *testing.T, open Open) {
	const size = 4 << 20
	data := Bytes(size)
	b := start(t, open, data)
	for _, part := range []int{0, 1, 70000, size} {
		r, err := b.ReadRange(t.Context(), 0, size)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, part)
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[:part]) {
			t.Fatalf("first %d bytes: %v", part, err)
		}
		if err := r.Close(); err != nil {
			t.Fatalf("close after %d bytes: %v", part, err)
		}
		if n, err := r.Read(got); n != 0 || err == nil {
			t.Fatalf("read after close: %d bytes, %v", n, err)
		}
	}
	MustRead(t, b, data, 0, size)
}

// mustBePrefix reads r to its end, which may be an error before n bytes.
func mustBePrefix(t *testing.T, r io.Reader, data []byte) {
	got, err := io.ReadAll(r)
	if len(got) > len(data) || !bytes.Equal(got, data[:len(got)]) || err == nil && len(got) != len(data) {
		t.Errorf("%d of %d bytes (or wrong ones) with error %v", len(got), len(data), err)
	}
}

func testCloseWhileReading(t *testing.T, open Open) {
	const size = 8 << 20
	data := Bytes(size)
	b := start(t, open, data)
	r, err := b.ReadRange(t.Context(), 0, size)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { mustBePrefix(t, r, data) })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
}

func testCloseTwice(t *testing.T, open Open) {
	b := start(t, open, Bytes(1000))
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadRange(t.Context(), 0, 10); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("read of a closed blob: %v", err)
		}
	}
}

func testCloseBlobWhileReading(t *testing.T, open Open) {
	const size = 8 << 20
	data := Bytes(size)
	b := start(t, open, data)
	var reading sync.WaitGroup
	for range 4 {
		r, err := b.ReadRange(t.Context(), 0, size)
		if err != nil {
			t.Fatal(err)
		}
		reading.Go(func() {
			mustBePrefix(t, r, data)
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
}
