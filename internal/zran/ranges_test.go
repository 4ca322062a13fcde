package zran

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sort"
	"sync"
	"testing"
)

// index is what Build finds in a file.
func index(t testing.TB, s stream, span int64) []Checkpoint {
	t.Helper()
	var all []Checkpoint
	var out bytes.Buffer
	total, err := Build(bytes.NewReader(s.raw), span, &out, func(c Checkpoint) error {
		all = append(all, c)
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if !bytes.Equal(out.Bytes(), s.plain) {
		t.Fatalf("%s: decompressed data is wrong", s.name)
	}
	if total.Compressed != int64(len(s.raw)) || total.Decompressed != int64(len(s.plain)) {
		t.Fatalf("%s: %+v, want %d and %d bytes", s.name, total, len(s.raw), len(s.plain))
	}
	for i, c := range all {
		from := max(0, c.Out-WindowSize)
		if !bytes.Equal(c.Window, s.plain[from:c.Out]) {
			t.Fatalf("%s: window of checkpoint %d is wrong", s.name, i)
		}
		if i == 0 {
			if c.Out != 0 || c.Bits != 0 {
				t.Fatalf("%s: first checkpoint at %d", s.name, c.Out)
			}
			continue
		}
		if last := all[i-1]; c.In < last.In || c.Out != 0 && c.Out-last.Out <= span {
			t.Fatalf("%s: checkpoint [%d,%d] after [%d,%d] with span %d", s.name, c.In, c.Out, last.In, last.Out, span)
		}
	}
	return all
}

// spanOf is the compressed data and the end of the plain data from checkpoint i to
// the first at or after end; no byte more.
func (s stream) spanOf(all []Checkpoint, i int, end int64) (compressed []byte, to int64) {
	next := i + 1 + sort.Search(len(all)-i-1, func(k int) bool { return all[i+1+k].Out >= end })
	if next == len(all) {
		return s.raw[all[i].Start():], int64(len(s.plain))
	}
	return s.raw[all[i].Start():all[next].In], all[next].Out
}

// checkRange reads one random range of s.
func checkRange(rnd *rand.Rand, d *Decoder, s stream, all []Checkpoint) error {
	off := rnd.Int64N(int64(len(s.plain)))
	end := off + 1 + rnd.Int64N(min(int64(len(s.plain))-off, 1<<rnd.IntN(18)))
	i := sort.Search(len(all), func(i int) bool { return all[i].Out > off }) - 1
	c := all[i]
	compressed, _ := s.spanOf(all, i, end)
	if rnd.IntN(4) == 0 {
		compressed = s.raw[c.Start():]
	}
	if rnd.IntN(2) == 0 { // as SOCI stores it
		c.Window = append(make([]byte, WindowSize-len(c.Window)), c.Window...)
	}
	dst := make([]byte, end-c.Out)
	if err := d.Decode(dst, c, bytes.NewReader(compressed)); err != nil {
		return fmt.Errorf("%s [%d,%d): %w", s.name, off, end, err)
	}
	if !bytes.Equal(dst[off-c.Out:], s.plain[off:end]) {
		return fmt.Errorf("%s [%d,%d): wrong bytes from checkpoint %d at %d", s.name, off, end, i, c.Out)
	}
	return nil
}

func TestRandomRangesEqualPlainData(t *testing.T) {
	rnd := newRand(t)
	for _, kind := range []struct {
		name    string
		streams func(testing.TB, *rand.Rand, int) []stream
	}{{"libraries", libraryStreams}, {"programs", programStreams}} {
		t.Run(kind.name, func(t *testing.T) {
			read := 0
			var d Decoder // one for all: what one decoding leaves is not seen by the next
			for _, s := range kind.streams(t, rnd, rangesSize) {
				for _, span := range []int64{1, 1000, 20_000 + rnd.Int64N(20_000), 100_000, 4 << 20} {
					all := index(t, s, span)
					for range rangesCount {
						if len(s.plain) == 0 {
							break
						}
						if err := checkRange(rnd, &d, s, all); err != nil {
							t.Fatalf("span %d: %v", span, err)
						}
						read++
					}
				}
			}
			t.Logf("%d ranges", read)
		})
	}
}

// Every span decodes from its own bytes alone, and from none fewer.
func TestSpansNeedTheirOwnBytesOnly(t *testing.T) {
	rnd := newRand(t)
	var d Decoder
	early := 0
	for _, s := range libraryStreams(t, rnd, 50_000) {
		all := index(t, s, 1000)
		for i, c := range all {
			compressed, to := s.spanOf(all, i, c.Out+1)
			want := s.plain[c.Out:to]
			got := make([]byte, len(want))
			if err := d.Decode(got, c, bytes.NewReader(compressed)); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: span %d of %d: right %v, %v", s.name, i, len(all), bytes.Equal(got, want), err)
			}
			for _, cut := range []int{1, 2, 3, 4, 1 + rnd.IntN(len(compressed))} {
				if cut > len(compressed) {
					continue
				}
				clear(got)
				err := d.Decode(got, c, bytes.NewReader(compressed[:len(compressed)-cut]))
				switch {
				case errors.Is(err, io.ErrUnexpectedEOF):
					early++
				case err != nil:
					t.Fatalf("%s: span %d without %d bytes: %v", s.name, i, cut, err)
				case !bytes.Equal(got, want): // the last block may hold no data
					t.Fatalf("%s: span %d without %d bytes: wrong data and no error", s.name, i, cut)
				}
			}
		}
	}
	if early == 0 {
		t.Error("no input ended too early")
	}
}

// Behind the data of the last member there is none, whatever follows.
func TestDecodeBehindTheEnd(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, text(rnd, 5000), text(rnd, 3000))
	var d Decoder
	for name, after := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, 512), "garbage": []byte("garbage"), "half a header": header(0)[:7],
	} {
		raw := append(bytes.Clone(s.raw), after...)
		all := index(t, s, 1<<20)
		for _, more := range []int{1, 3000} {
			dst := make([]byte, len(s.plain)+more)
			err := d.Decode(dst, all[0], bytes.NewReader(raw[all[0].Start():]))
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %d bytes more: %v", name, more, err)
			}
		}
		dst := make([]byte, len(s.plain))
		if err := d.Decode(dst, all[0], bytes.NewReader(raw[all[0].Start():])); err != nil || !bytes.Equal(dst, s.plain) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodersInParallel(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, mixed(rnd, 200_000), mixed(rnd, 100_000))
	all := index(t, s, 10_000)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		seed := rnd.Uint64()
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var d Decoder
			for range 50 {
				errs[i] = errors.Join(errs[i], checkRange(rnd, &d, s, all))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
