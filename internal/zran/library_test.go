package zran

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/klauspost/compress/flate"
)

// What input.inflate corrects is in the library, in just that form. Where this
// fails the library has changed: read inflate's comment against its source.
func TestLibraryCountsBytesTwiceAtStoredBlocks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2)) // whether whole bytes are taken back is chance
	var deflated bytes.Buffer
	w, err := flate.NewWriter(&deflated, 6)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int // of the empty stored block of each flush
	for range 20 {
		if _, err := w.Write(text(rnd, 2000)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, deflated.Len())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var reported []int64
	blocks := 0
	r := flate.NewReaderOpts(bufio.NewReader(bytes.NewReader(deflated.Bytes())),
		flate.WithEobCallback(func(c flate.InflateCheckpoint) {
			if blocks++; blocks%2 == 0 && !c.Final {
				reported = append(reported, c.CompressedOffset)
			}
		}))
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if len(reported) != len(ends) {
		t.Fatalf("%d stored blocks, want %d", len(reported), len(ends))
	}
	last := int64(0)
	for i, end := range ends {
		drift := reported[i] - int64(end)
		if drift < last {
			t.Errorf("offset of stored block %d is %d too high, after %d", i, drift, last)
		}
		last = drift
	}
	if last == 0 {
		t.Error("the library counts right: drop the correction")
	}
}

// The last bytes of a block may need what follows it, but no more than lookahead
// bytes, else Decode would not do with a span's own bytes. Where none is needed any
// more, Decode's zeros can go.
func TestLibraryLooksAhead(t *testing.T) {
	raw, err := os.ReadFile("testdata/soci/zlib-huffman-only.gz")
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	s := stream{"literals", raw, plain}
	all := index(t, s, 1)
	need := 0
	for i, c := range all[:len(all)-1] {
		want := s.plain[c.Out:all[i+1].Out]
		for more := range lookahead + 1 {
			raw := append(bytes.Clone(s.raw[c.Start():all[i+1].In]), make([]byte, more)...)
			r := flate.NewReaderOpts(bufio.NewReader(bytes.NewReader(raw)),
				flate.WithResumeFrom(flate.InflateCheckpoint{BitOffset: -c.Bits & 7, Window: c.Window}))
			got := make([]byte, len(want))
			if n, _ := io.ReadFull(r, got); n == len(got) && bytes.Equal(got, want) {
				need = max(need, more)
				break
			} else if more == lookahead {
				t.Fatalf("span %d: %d of %d bytes with %d bytes more", i, n, len(got), more)
			}
		}
	}
	if need == 0 {
		t.Errorf("the library does not look ahead any more")
	}
}

// Memory does not grow with the data: a span of 32 MiB, made of zeros.
func TestMemoryIsBounded(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, make([]byte, 16<<20), make([]byte, 16<<20))
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if n := allocated(func() {
		if _, err := Build(bytes.NewReader(s.raw), 4<<20, nil, noEmit); err != nil {
			t.Error(err)
		}
	}); n > 2<<20 {
		t.Errorf("Build took %d bytes", n)
	}
	dst := make([]byte, len(s.plain))
	if n := allocated(func() {
		if err := new(Decoder).Decode(dst, Checkpoint{In: 10}, bytes.NewReader(s.raw[10:])); err != nil {
			t.Error(err)
		}
	}); n > 512<<10 {
		t.Errorf("Decode took %d bytes", n)
	}
	if !bytes.Equal(dst, s.plain) {
		t.Error("wrong data")
	}
}
