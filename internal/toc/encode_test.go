package toc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lacunafs/lacuna/internal/toc"
)

// sample is a valid TOC with something of everything.
func sample(t testing.TB) *toc.TOC {
	t.Helper()
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	got, err := build([]toc.Entry{
		{Name: "/", Type: toc.Directory, Mode: 0o1777, UID: 1<<32 - 1, GID: 7, Sec: -62135596800, Nsec: 999999999},
		{Name: "a", Type: toc.Regular, Mode: 0o4755, Size: 5000, Sec: 1 << 40, Chunks: []toc.Chunk{
			{Off: 0, Len: 1000, BlobOff: 100, BlobLen: 50, Codec: toc.Gzip, Digest: digest},
			{Off: 2000, Len: 3000, BlobOff: 150, BlobLen: 50, Inner: 77, Codec: toc.Gzip},
		}, Xattrs: []toc.Xattr{{Name: "security.capability", Value: "\x00\x01\xff"}, {Name: "user.e", Value: ""}}},
		{Name: "ab/\xff\n", Type: toc.Regular, Size: 1, Chunks: []toc.Chunk{{Len: 1, BlobOff: 20, BlobLen: 1, Codec: toc.Stored}}},
		{Name: "a", Type: toc.Regular, Size: 1 << 43},
		{Name: "l", Type: toc.Symlink, Link: "../\xfe", Mode: 0o777},
		{Name: "h", Type: toc.Hardlink, Link: "lower"},
		{Name: "d/c", Type: toc.Char, Major: 1<<12 - 1, Minor: 1<<20 - 1},
		{Name: "d/b", Type: toc.Block, Major: 8},
		{Name: "d/f", Type: toc.Fifo},
		{Name: "d/.wh.x", Type: toc.Regular},
		{Name: ".wh..wh..opq", Type: toc.Regular},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func encode(t testing.TB, x *toc.TOC) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := x.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEncodingComesBackTheSame(t *testing.T) {
	for _, x := range []*toc.TOC{sample(t), {BlobSize: 0, Entries: []toc.Entry{}}, {BlobSize: 1<<63 - 1, Entries: []toc.Entry{}}} {
		b := encode(t, x)
		got, err := toc.Decode(iotest.OneByteReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, x) {
			t.Errorf("got  %+v\nwant %+v", got, x)
		}
		if !bytes.Equal(encode(t, got), b) {
			t.Error("encodes to other bytes")
		}
	}
}

func TestDamagedEncodingIsRefused(t *testing.T) {
	b := encode(t, sample(t))
	for i := range b {
		for _, bit := range []byte{1, 0x80} {
			wrong := slices.Clone(b)
			wrong[i] ^= bit
			if _, err := toc.Decode(bytes.NewReader(wrong)); !errors.Is(err, toc.ErrInvalid) {
				t.Fatalf("byte %d: %v", i, err)
			}
			if err := toc.Check(bytes.NewReader(wrong)); !errors.Is(err, toc.ErrInvalid) {
				t.Fatalf("check, byte %d: %v", i, err)
			}
		}
		if _, err := toc.Decode(bytes.NewReader(b[:i])); !errors.Is(err, toc.ErrInvalid) {
			t.Fatalf("%d bytes: %v", i, err)
		}
		if err := toc.Check(bytes.NewReader(b[:i])); !errors.Is(err, toc.ErrInvalid) {
			t.Fatalf("check, %d bytes: %v", i, err)
		}
	}
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(b), "by bytes": iotest.OneByteReader(bytes.NewReader(b))} {
		if err := toc.Check(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	more := append(slices.Clone(b), 0)
	if _, err := toc.Decode(bytes.NewReader(more)); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("a byte more: %v", err)
	}
	if err := toc.Check(bytes.NewReader(more)); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("check, a byte more: %v", err)
	}
	errRead := errors.New("read error")
	if _, err := toc.Decode(iotest.ErrReader(errRead)); !errors.Is(err, errRead) {
		t.Errorf("%v", err)
	}
	for _, n := range []int{0, 20} {
		if err := toc.Check(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(errRead))); !errors.Is(err, errRead) {
			t.Errorf("check, after %d bytes: %v", n, err)
		}
	}
}

// reseal makes the checksum right again.
func reseal(b []byte) []byte {
	b = slices.Clone(b)
	sum := crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[len(b)-4:], sum)
	return b
}

// FuzzDecode wants whatever decodes to encode to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, sample(f)))
	f.Add(encode(f, &toc.TOC{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		b = reseal(b)
		got, err := toc.Decode(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if again := encode(t, got); !bytes.Equal(again, b) {
			t.Errorf("encodes to other bytes:\n%x\n%x", again, b)
		}
	})
}

func TestInvalidTOCIsRefused(t *testing.T) {
	// What only Validate finds.
	names := []string{"replaced alive", "twice", "below a file", "link to a link", "link to a directory"}
	for name, spoil := range map[string]func(*toc.TOC){
		"replaced alive": func(x *toc.TOC) { x.Entries = append(x.Entries, x.Entries[len(x.Entries)-1]) },
		"twice":          func(x *toc.TOC) { x.Entries = append(x.Entries, toc.Entry{Name: "l", Type: toc.Fifo}) },
		"below a file":   func(x *toc.TOC) { x.Entries = append(x.Entries, toc.Entry{Name: "l/x", Type: toc.Fifo}) },
		"not clean":      func(x *toc.TOC) { x.Entries = append(x.Entries, toc.Entry{Name: "./q", Type: toc.Fifo}) },
		"dots":           func(x *toc.TOC) { x.Entries = append(x.Entries, toc.Entry{Name: "q/..", Type: toc.Fifo}) },
		"marker's name":  func(x *toc.TOC) { x.Entries = append(x.Entries, toc.Entry{Name: ".wh.q", Type: toc.Fifo}) },
		"link to a link": func(x *toc.TOC) {
			x.Entries = append(x.Entries, toc.Entry{Name: "q", Type: toc.Hardlink, Link: "h"})
		},
		"link to a directory": func(x *toc.TOC) {
			x.Entries = append(x.Entries, toc.Entry{Name: "q", Type: toc.Directory}, toc.Entry{Name: "p", Type: toc.Hardlink, Link: "q"})
		},
		"mode": func(x *toc.TOC) { x.Entries[0].Mode = 0o40755 },
		"blob": func(x *toc.TOC) { x.BlobSize = 10 },
		"link owned": func(x *toc.TOC) {
			x.Entries = append(x.Entries, toc.Entry{Name: "q", Type: toc.Hardlink, Link: "p", UID: 1})
		},
	} {
		x := sample(t)
		spoil(x)
		if err := x.Validate(); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		_, err := toc.Decode(bytes.NewReader(encode(t, x)))
		if errors.Is(err, toc.ErrInvalid) == slices.Contains(names, name) {
			t.Errorf("%s: decode: %v", name, err)
		}
	}
}

// large is a TOC of n files in directories of 40.
func large(t testing.TB, n int) *toc.TOC {
	t.Helper()
	b := toc.NewBuilder(1 << 40)
	for i := range n {
		name := fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.py", i/40, i)
		digest := fmt.Sprintf("sha256:%064x", i*7919)
		if _, err := b.Add(toc.Entry{
			Name: name, Type: toc.Regular, Mode: 0o644, Sec: 1700000000 + int64(i), Size: 3000,
			Chunks: []toc.Chunk{{Len: 3000, BlobOff: int64(i) * 1000, BlobLen: 1000, Codec: toc.Gzip, Digest: digest}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	x, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func BenchmarkDecode120k(b *testing.B) {
	data := encode(b, large(b, 120_000))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := toc.Decode(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck120k(b *testing.B) {
	data := encode(b, large(b, 120_000))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := toc.Check(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode120k(b *testing.B) {
	x := large(b, 120_000)
	for b.Loop() {
		encode(b, x)
	}
}
