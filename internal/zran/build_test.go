package zran

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// sociVector is checkpoints as SOCI keeps them in a zTOC (soci-snapshotter
// 0.16.1, ztoc/compression/gzip_zinfo.c, zinfo_to_blob).
func sociVector(all []Checkpoint, span int64) []byte {
	v := binary.LittleEndian.AppendUint32(nil, uint32(len(all)))
	v = binary.LittleEndian.AppendUint64(v, uint64(span))
	for _, c := range all {
		v = binary.LittleEndian.AppendUint64(v, uint64(c.In))
		v = binary.LittleEndian.AppendUint64(v, uint64(c.Out))
		v = append(v, c.Bits)
		v = append(v, make([]byte, WindowSize-len(c.Window))...)
		v = append(v, c.Window...)
	}
	return v
}

// testdata/soci/expect has a line for each file and span: how many checkpoints
// SOCI 0.16.1 finds with zlib 1.2.13, and the digest of its vector.
func TestCheckpointsAreSOCIs(t *testing.T) {
	lines, err := os.ReadFile("testdata/soci/expect")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(lines)) {
		var name, digest string
		var span int64
		var count int
		if _, err := fmt.Sscan(line, &name, &span, &count, &digest); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		raw, err := os.ReadFile(filepath.Join("testdata/soci", name))
		if err != nil {
			t.Fatal(err)
		}
		var all []Checkpoint
		if _, err := Build(bytes.NewReader(raw), span, nil, func(c Checkpoint) error {
			all = append(all, c)
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(sociVector(all, span))); len(all) != count || got != digest {
			t.Errorf("%s, span %d: %d checkpoints, %s; want %d, %s", name, span, len(all), got, count, digest)
		}
		seen++
	}
	if seen < 30 {
		t.Errorf("%d lines", seen)
	}
}

func noEmit(Checkpoint) error { return nil }

func TestBuildIgnoresWhatFollows(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, text(rnd, 100), text(rnd, 200))
	for name, after := range map[string][]byte{
		"nothing": nil, "a zero": {0}, "tape blocks": make([]byte, 10240), "text": []byte("trailing garbage"),
		"half a magic": {0x1f}, "zeros and a member": append(make([]byte, 512), s.raw...),
		"zlib": {0x78, 0x9c, 3, 0, 0, 0, 0, 1},
	} {
		var out bytes.Buffer
		total, err := Build(bytes.NewReader(append(bytes.Clone(s.raw), after...)), 1, &out, noEmit)
		want := Total{Compressed: int64(len(s.raw) + len(after)), Decompressed: 300, Members: 2, Trailing: int64(len(after))}
		if err != nil || total != want || !bytes.Equal(out.Bytes(), s.plain) {
			t.Errorf("%s: %+v, %v; want %+v", name, total, err, want)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, text(rnd, 3000))
	change := func(at int, to byte) []byte {
		b := append(bytes.Clone(s.raw), s.raw...)
		if at < 0 {
			at += len(b)
		}
		b[at] = to
		return b
	}
	last := len(s.raw)
	for _, c := range []struct {
		name string
		raw  []byte
		want error
	}{
		{"nothing", nil, ErrNotGzip},
		{"text", []byte("no gzip data"), ErrNotGzip},
		{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}, ErrNotGzip},
		{"method", change(2, 7), ErrCorrupt},
		{"reserved flag", change(3, 0x20), ErrCorrupt},
		{"method of the second", change(last+2, 7), ErrCorrupt},
		{"reserved block", change(10, 7), ErrCorrupt},
		{"checksum", change(-8, s.raw[last-8]+1), ErrCorrupt},
		{"size", change(-4, s.raw[last-4]+1), ErrCorrupt},
		{"size's high byte", change(-1, 1), ErrCorrupt},
		{"header checksum", append(header(flagHeaderCRC)[:10], 0, 0, 3, 0), ErrCorrupt},
		{"end in the fixed header", s.raw[:9], io.ErrUnexpectedEOF},
		{"end in the extra field", header(flagExtra)[:14], io.ErrUnexpectedEOF},
		{"end in the name", header(flagName)[:12], io.ErrUnexpectedEOF},
		{"end in the header's checksum", header(flagHeaderCRC)[:11], io.ErrUnexpectedEOF},
		{"end in the data", s.raw[:last/2], io.ErrUnexpectedEOF},
		{"end in the trailer", s.raw[:last-1], io.ErrUnexpectedEOF},
		{"end in the second header", change(0, 0x1f)[:last+5], io.ErrUnexpectedEOF},
		{"end in the second", change(0, 0x1f)[:2*last-1], io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Build(bytes.NewReader(c.raw), 1, nil, noEmit); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if _, err := Build(bytes.NewReader(s.raw), 0, nil, noEmit); err == nil {
		t.Error("span size 0 taken")
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBuildReturnsErrorsOfOthers(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, text(rnd, 3000), noise(rnd, 100_000))
	mine := errors.New("mine")
	for at := range 3 {
		n := 0
		_, err := Build(bytes.NewReader(s.raw), 1, nil, func(Checkpoint) error {
			if n++; n > at {
				return mine
			}
			return nil
		})
		if !errors.Is(err, mine) || n != at+1 {
			t.Errorf("emit: %v after %d calls", err, n)
		}
	}
	if _, err := Build(bytes.NewReader(s.raw), 1, failingWriter{mine}, noEmit); !errors.Is(err, mine) {
		t.Errorf("out: %v", err)
	}
	for n := 0; n <= len(s.raw); n += 1 + len(s.raw)/50 {
		r := io.MultiReader(bytes.NewReader(s.raw[:n]), iotest.ErrReader(mine))
		if _, err := Build(r, 1, nil, noEmit); !errors.Is(err, mine) {
			t.Errorf("r after %d bytes: %v", n, err)
		}
		c := index(t, s, 1<<20)[0]
		r = io.MultiReader(bytes.NewReader(s.raw[min(int64(n), c.In):n]), iotest.ErrReader(mine))
		if err := new(Decoder).Decode(make([]byte, len(s.plain)), c, r); int64(n) < int64(len(s.raw))-8 && !errors.Is(err, mine) {
			t.Errorf("compressed after %d bytes: %v", n, err)
		}
	}
}

// idle gives nothing, for ever.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func TestReaderThatGivesNothing(t *testing.T) {
	if _, err := Build(idle{}, 1, nil, noEmit); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Build: %v", err)
	}
	if err := new(Decoder).Decode(make([]byte, 1), Checkpoint{In: 10}, idle{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Decode: %v", err)
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func TestBuildReadsAndWritesInStep(t *testing.T) {
	rnd := newRand(t)
	for _, s := range libraryStreams(t, rnd, 100_000) {
		for name, r := range map[string]io.Reader{
			"whole":          bytes.NewReader(s.raw),
			"byte by byte":   iotest.OneByteReader(bytes.NewReader(s.raw)),
			"data with EOF":  iotest.DataErrReader(bytes.NewReader(s.raw)),
			"large bufferer": bufio.NewReaderSize(bytes.NewReader(s.raw), 1<<20),
		} {
			in := &counter{r: r}
			var out bytes.Buffer
			if _, err := Build(in, 5000, &out, func(c Checkpoint) error {
				if in.n < c.In || in.n > c.In+ReadAhead {
					return fmt.Errorf("%d bytes read", in.n)
				}
				if lag := c.Out - int64(out.Len()); lag < 0 || lag > WindowSize {
					return fmt.Errorf("%d bytes written before %d", out.Len(), c.Out)
				}
				return nil
			}); err != nil || !bytes.Equal(out.Bytes(), s.plain) {
				t.Errorf("%s, %s: %v", s.name, name, err)
			}
		}
	}
}

// damaged data: an error, or what a checksum does not cover is unharmed.
func TestBuildNoticesDamage(t *testing.T) {
	rnd := newRand(t)
	s := members(t, rnd, mixed(rnd, 30_000), nil, mixed(rnd, 10_000))
	for range 500 {
		raw := bytes.Clone(s.raw)
		for range 1 + rnd.IntN(3) {
			raw[rnd.IntN(len(raw))] ^= 1 << rand.IntN(8)
		}
		if rnd.IntN(3) == 0 {
			raw = raw[:rnd.IntN(len(raw))]
		}
		var out bytes.Buffer
		total, err := Build(bytes.NewReader(raw), 1000, &out, noEmit)
		if err == nil && (int64(out.Len()) != total.Decompressed || !bytes.HasPrefix(s.plain, out.Bytes())) {
			t.Fatalf("wrong data and no error: %+v", total)
		}
	}
}
