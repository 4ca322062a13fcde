package zran

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"
)

// fuzzLimit bounds input, since each byte can become a thousand.
const fuzzLimit = 16 << 10

// fuzzSeeds are small streams of many forms.
func fuzzSeeds(f *testing.F) []stream {
	rnd := rand.New(rand.NewPCG(1, 2))
	all := []stream{
		members(f, rnd, nil),
		members(f, rnd, []byte("a"), nil, text(rnd, 3000)),
		members(f, rnd, noise(rnd, 1000), text(rnd, 1000), make([]byte, 5000), nil),
	}
	for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 9} {
		data := append(text(rnd, 2000), noise(rnd, 2000)...)
		all = append(all, stream{"", compress(f, rnd, data, true, func(w io.Writer) (writer, error) {
			return stdgzip.NewWriterLevel(w, level)
		}), data})
	}
	return all
}

// What Build accepts, the standard library decompresses to the same, and every
// span decodes to its part of it.
func FuzzBuild(f *testing.F) {
	for i, s := range fuzzSeeds(f) {
		f.Add(s.raw, int64(1+i*300))
		f.Add(append(s.raw, "garbage"...), int64(1))
		f.Add(s.raw[:len(s.raw)-3], int64(1))
	}
	f.Fuzz(func(t *testing.T, raw []byte, span int64) {
		if len(raw) > fuzzLimit {
			return
		}
		var all []Checkpoint
		var out bytes.Buffer
		total, err := Build(bytes.NewReader(raw), span, &out, func(c Checkpoint) error {
			if len(all) < 1000 {
				all = append(all, c)
			}
			return nil
		})
		if err != nil {
			return
		}
		if total.Compressed != int64(len(raw)) || total.Decompressed != int64(out.Len()) || len(all) == 0 {
			t.Fatalf("%+v of %d bytes, %d checkpoints", total, len(raw), len(all))
		}
		s := stream{raw: raw, plain: out.Bytes()}
		z, err := stdgzip.NewReader(bytes.NewReader(raw[:len(raw)-int(total.Trailing)]))
		if err == nil {
			var want []byte
			if want, err = io.ReadAll(z); err == nil && !bytes.Equal(want, s.plain) {
				t.Fatal("not what compress/gzip decompresses")
			}
		}
		// It takes no names above 512 bytes, and says what it says of garbage.
		if err != nil && !errors.Is(err, stdgzip.ErrHeader) {
			t.Fatalf("compress/gzip: %v", err)
		}
		var d Decoder
		for i, c := range all {
			if len(all) == 1000 && i >= 900 {
				break
			}
			compressed, to := s.spanOf(all, i, c.Out+1)
			got := make([]byte, to-c.Out)
			if err := d.Decode(got, c, bytes.NewReader(compressed)); err != nil || !bytes.Equal(got, s.plain[c.Out:to]) {
				t.Fatalf("span %d of %d: %v", i, len(all), err)
			}
		}
	})
}

// A Decoder takes anything. It gives as many bytes as asked for, the same ones
// each time, whatever it did before, or an error.
func FuzzDecode(f *testing.F) {
	for _, s := range fuzzSeeds(f) {
		n := 0
		if _, err := Build(bytes.NewReader(s.raw), 1, nil, func(c Checkpoint) error {
			if n++; n < 4 {
				f.Add(s.raw[c.Start():], c.In, c.Out, c.Bits, c.Window, len(s.plain)-int(c.Out))
			}
			return nil
		}); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte{}, int64(math.MaxInt64), int64(math.MinInt64), uint8(255), make([]byte, WindowSize+1), 1)
	f.Fuzz(func(t *testing.T, raw []byte, in, out int64, bits uint8, window []byte, n int) {
		if len(raw) > fuzzLimit || n < 0 || n > 4<<20 {
			return
		}
		c := Checkpoint{In: in, Out: out, Bits: bits, Window: window}
		var d Decoder
		first, again := make([]byte, n), make([]byte, n)
		err := d.Decode(first, c, bytes.NewReader(raw))
		if e := d.Decode(again, c, bytes.NewReader(raw)); (e == nil) != (err == nil) {
			t.Fatalf("%v, then %v", err, e)
		}
		if err == nil && !bytes.Equal(first, again) {
			t.Fatal("other bytes the second time")
		}
		// With more input the bytes stay.
		if err == nil && n > 0 {
			if e := d.Decode(again, c, bytes.NewReader(append(bytes.Clone(raw), 255, 255, 255, 255))); e != nil || !bytes.Equal(first, again) {
				t.Fatalf("with input behind: same bytes %v, %v", bytes.Equal(first, again), e)
			}
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrCheckpoint) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}
