package soci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/tarscan"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/internal/zran"
)

// zip compresses data, in members of the given sizes and one of the rest.
func zip(t testing.TB, data []byte, level int, members ...int) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, n := range append(members, len(data)) {
		n = min(n, len(data))
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	return b.Bytes()
}

func build(t testing.TB, layer []byte, o soci.BuildOptions) []byte {
	t.Helper()
	z, err := soci.Build(t.Context(), bytes.NewReader(layer), o)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func open(t testing.TB, z []byte, layer int) (*soci.Ztoc, *toctest.Blob) {
	t.Helper()
	b := &toctest.Blob{Bytes: z}
	zt, err := soci.Open(t.Context(), b, int64(layer))
	if err != nil {
		t.Fatal(err)
	}
	if open := b.Open.Load(); open != 0 {
		t.Errorf("%d readers left open", open)
	}
	return zt, b
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// scanned is the table of contents that tarscan makes, without digests.
func scanned(t testing.TB, layer []byte) *toc.TOC {
	t.Helper()
	want, _, err := tarscan.Scan(t.Context(), bytes.NewReader(layer), tarscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range want.Entries {
		for j := range want.Entries[i].Chunks {
			want.Entries[i].Chunks[j].Digest = ""
		}
	}
	return want
}

func TestTableOfContentsIsThatOfAScan(t *testing.T) {
	plain := toctest.Tar(t, append(toctest.Torture(), toctest.Reg("usr/large", toctest.Random(3, 9<<20)), toctest.Reg("etc/passwd", []byte("again"))))
	for name, layer := range map[string][]byte{
		"gzip": zip(t, plain, 6), "members": zip(t, plain, 1, 1, 0, 700_000, 3<<20), "stored": plain,
	} {
		t.Run(name, func(t *testing.T) {
			zt, b := open(t, build(t, layer, soci.BuildOptions{SpanSize: 256 << 10, Stored: name == "stored"}), len(layer))
			got, err := zt.TOC()
			if err != nil {
				t.Fatal(err)
			}
			if want := scanned(t, layer); !reflect.DeepEqual(got, want) {
				toctest.Compare(t, toctest.Got(t, got, layer), toctest.Got(t, want, layer))
				t.Error("not what a scan finds")
			}
			if n := b.Requests.Load(); n > 3 {
				t.Errorf("%d requests", n)
			}
			t.Logf("%d of %d bytes in %d requests", b.Sent.Load(), len(b.Bytes), b.Requests.Load())
		})
	}
}

// decode is [off, end) of the uncompressed layer, by way of the spans.
func decode(t testing.TB, r *soci.Reader, layer []byte, off, end int64) []byte {
	t.Helper()
	spans, err := r.Covering(t.Context(), off, end)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	var d zran.Decoder
	for i, s := range spans {
		packed := layer[s.BlobOff:][:s.BlobLen]
		if sha256.Sum256(packed) != s.Digest {
			t.Fatalf("span %d: wrong digest", s.Index)
		}
		if i > 0 && spans[i-1].End != s.Checkpoint.Out {
			t.Fatalf("span %d begins at %d, the one before ends at %d", s.Index, s.Checkpoint.Out, spans[i-1].End)
		}
		data := make([]byte, min(s.End, end)-s.Checkpoint.Out)
		if r.Spans().Codec == toc.Stored {
			copy(data, packed)
		} else if err := d.Decode(data, s.Checkpoint, bytes.NewReader(packed)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			data = data[off-s.Checkpoint.Out:]
		}
		out = append(out, data...)
	}
	return out
}

func TestSpansDecodeToWhatTheyCover(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	plain := toctest.Tar(t, append(toctest.Torture(), toctest.Reg("x", toctest.Text(5<<20)), toctest.Reg("y", make([]byte, 3<<20))))
	for name, layer := range map[string][]byte{
		"gzip": zip(t, plain, 6), "members": zip(t, plain, 1, 0, 40_000, 40_000, 3<<20), "stored": plain,
	} {
		t.Run(name, func(t *testing.T) {
			z := build(t, layer, soci.BuildOptions{SpanSize: 100_000, Stored: name == "stored"})
			zt, _ := open(t, z, len(layer))
			b := &toctest.Blob{Bytes: z}
			r, err := soci.NewReader(zt.Spans, b)
			if err != nil {
				t.Fatal(err)
			}
			for range 300 {
				off := rng.Int64N(int64(len(plain) - 1))
				end := min(off+1+rng.Int64N(300_000), int64(len(plain)))
				if got := decode(t, r, layer, off, end); !bytes.Equal(got, plain[off:end]) {
					t.Fatalf("[%d,%d): other bytes", off, end)
				}
			}
			if got := decode(t, r, layer, 0, int64(len(plain))); !bytes.Equal(got, plain) {
				t.Error("whole layer: other bytes")
			}
			spans, err := r.Covering(t.Context(), int64(len(plain)), math.MaxInt64)
			if err != nil || len(spans) != 1 || spans[0].End != math.MaxInt64 {
				t.Errorf("past the end: %v, %v", spans, err)
			}
		})
	}
}

func TestFirstSpanOfAFileIsOneRequest(t *testing.T) {
	layer := zip(t, toctest.Tar(t, []toctest.File{toctest.Reg("x", toctest.Text(10<<20)), toctest.Reg("y", toctest.Random(1, 1000))}), 6)
	z := build(t, layer, soci.BuildOptions{SpanSize: 256 << 10})
	zt, b := open(t, z, len(layer))
	before := b.Sent.Load()
	for _, off := range []int64{zt.Files[1].Off, 5 << 20} {
		r, err := soci.NewReader(zt.Spans, b)
		if err != nil {
			t.Fatal(err)
		}
		b.Requests.Store(0)
		if _, err := r.Covering(t.Context(), off, off+1000); err != nil {
			t.Fatal(err)
		}
		if n := b.Requests.Load(); n > 2 {
			t.Errorf("%d requests for the checkpoint of %d", n, off)
		}
	}
	if n := len(z); before > int64(n)/4 {
		t.Errorf("%d of %d bytes before the first span", before, n)
	}
}

func TestMarshalWritesWhatOpenReads(t *testing.T) {
	plain := toctest.Tar(t, toctest.Torture())
	for _, stored := range []bool{false, true} {
		layer := plain
		if !stored {
			layer = zip(t, plain, 6)
		}
		z := build(t, layer, soci.BuildOptions{SpanSize: 64 << 10, Tool: "a tool", Stored: stored})
		if again := build(t, layer, soci.BuildOptions{SpanSize: 64 << 10, Tool: "a tool", Stored: stored}); !bytes.Equal(again, z) {
			t.Error("not the same bytes twice")
		}
		zt, b := open(t, z, len(layer))
		r, err := soci.NewReader(zt.Spans, b)
		if err != nil {
			t.Fatal(err)
		}
		spans, err := r.Load(t.Context(), 0, zt.Spans.Count())
		if err != nil {
			t.Fatal(err)
		}
		var points []zran.Checkpoint
		for _, s := range spans {
			points = append(points, s.Checkpoint)
		}
		if got, err := soci.Marshal(zt, points); err != nil || !bytes.Equal(got, z) {
			t.Errorf("stored %t: other bytes, %v", stored, err)
		}
		if zt.Tool != "a tool" {
			t.Errorf("tool %q", zt.Tool)
		}
	}
}

func TestFirstFormLeavesOutTheFirstCheckpoint(t *testing.T) {
	plain := toctest.Tar(t, []toctest.File{toctest.Reg("x", toctest.Text(3<<20))})
	layer := zip(t, plain, 6)
	z := build(t, layer, soci.BuildOptions{SpanSize: 512 << 10})
	zt, b := open(t, z, len(layer))
	r, _ := soci.NewReader(zt.Spans, b)
	spans, err := r.Load(t.Context(), 0, zt.Spans.Count())
	if err != nil {
		t.Fatal(err)
	}
	var points []zran.Checkpoint
	for _, s := range spans {
		points = append(points, s.Checkpoint)
	}
	old := *zt.Spans
	old.FirstLeftOut = true
	zt.Spans = &old
	first, err := soci.Marshal(zt, points)
	if err != nil {
		t.Fatal(err)
	}
	if len(first) > len(z)-32<<10 {
		t.Fatalf("%d bytes, with all of them %d", len(first), len(z))
	}
	zt, b = open(t, first, len(layer))
	if r, err = soci.NewReader(zt.Spans, b); err != nil || !zt.Spans.FirstLeftOut {
		t.Fatal(zt.Spans.FirstLeftOut, err)
	}
	if got := decode(t, r, layer, 0, int64(len(plain))); !bytes.Equal(got, plain) {
		t.Error("other bytes")
	}
	if err := r.Verify(t.Context(), digestOf(first)); err != nil {
		t.Error(err)
	}
}

func TestSpansAreKept(t *testing.T) {
	plain := toctest.Tar(t, toctest.Torture())
	layer := zip(t, plain, 6)
	z := build(t, layer, soci.BuildOptions{SpanSize: 64 << 10})
	zt, b := open(t, z, len(layer))
	r, err := soci.NewReader(zt.Spans, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, verified := range []bool{false, true} {
		if verified {
			if err := r.Verify(t.Context(), digestOf(z)); err != nil {
				t.Fatal(err)
			}
		}
		var kept bytes.Buffer
		if err := r.Spans().Encode(&kept); err != nil {
			t.Fatal(err)
		}
		got, err := soci.DecodeSpans(bytes.NewReader(kept.Bytes()))
		if err != nil || !reflect.DeepEqual(got, r.Spans()) || got.Verified() != verified {
			t.Errorf("%+v, %v", got, err)
		}
		for i := range kept.Bytes() {
			bad := bytes.Clone(kept.Bytes())
			bad[i] ^= 1
			if _, err := soci.DecodeSpans(bytes.NewReader(bad)); !errors.Is(err, toc.ErrInvalid) {
				t.Fatalf("byte %d changed: %v", i, err)
			}
		}
		if r, err = soci.NewReader(got, b); err != nil {
			t.Fatal(err)
		}
		if got := decode(t, r, layer, 0, int64(len(plain))); !bytes.Equal(got, plain) {
			t.Error("other bytes")
		}
	}
}

func TestVerifyFindsWhatWasChanged(t *testing.T) {
	plain := toctest.Tar(t, toctest.Torture())
	layer := zip(t, plain, 6)
	z := build(t, layer, soci.BuildOptions{SpanSize: 64 << 10})
	good, _ := open(t, z, len(layer))
	off, _ := good.Spans.Record(2)

	t.Run("window", func(t *testing.T) {
		lies := &toctest.Blob{Bytes: bytes.Clone(z)}
		lies.Bytes[off+20000] ^= 1
		zt, _ := open(t, lies.Bytes, len(layer))
		r, _ := soci.NewReader(zt.Spans, lies)
		if err := r.Verify(t.Context(), digestOf(z)); !errors.Is(err, toc.ErrDigest) {
			t.Error(err)
		}
		// It was used, and is right when all is read.
		if _, err := r.Load(t.Context(), 2, 1); err != nil {
			t.Fatal(err)
		}
		lies.Bytes[off+20000] ^= 1
		if err := r.Verify(t.Context(), digestOf(z)); !errors.Is(err, toc.ErrDigest) {
			t.Error(err)
		}
		// It is wrong after all was right.
		r, _ = soci.NewReader(zt.Spans, lies)
		if err := r.Verify(t.Context(), digestOf(z)); err != nil {
			t.Fatal(err)
		}
		lies.Bytes[off+20000] ^= 1
		if _, err := r.Load(t.Context(), 2, 1); !errors.Is(err, toc.ErrDigest) {
			t.Error(err)
		}
	})
	t.Run("metadata", func(t *testing.T) {
		bad := bytes.Replace(bytes.Clone(z), []byte("usr/bin/big"), []byte("usr/bin/bad"), 1)
		zt, _ := open(t, bad, len(layer))
		r, _ := soci.NewReader(zt.Spans, &toctest.Blob{Bytes: z})
		if err := r.Verify(t.Context(), digestOf(z)); !errors.Is(err, toc.ErrDigest) || !errors.Is(err, soci.ErrOther) {
			t.Error(err)
		}
	})
}

func TestWhatAZtocCannotSayIsRefused(t *testing.T) {
	odd := func(h tar.Header) []byte {
		h.Name, h.Mode, h.Format = "x", 0o644, tar.FormatPAX
		return toctest.Tar(t, []toctest.File{toctest.Reg("a", nil), {Header: h}})
	}
	for name, plain := range map[string][]byte{
		"year 10000": odd(tar.Header{Typeflag: tar.TypeReg, ModTime: time.Unix(1<<38, 0)}),
		"owner":      odd(tar.Header{Typeflag: tar.TypeReg, Uid: 1 << 32, ModTime: time.Unix(1, 0)}),
		"contiguous": odd(tar.Header{Typeflag: tar.TypeCont, ModTime: time.Unix(1, 0)}),
	} {
		_, err := soci.Build(t.Context(), bytes.NewReader(zip(t, plain, 6)), soci.BuildOptions{})
		if !errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := toctest.Tar(t, toctest.Torture())
	damaged := zip(t, plain, 6)
	damaged[len(damaged)/2] ^= 1
	for name, layer := range map[string][]byte{
		"no tar": zip(t, toctest.Random(1, 4096), 6), "no gzip": toctest.Random(1, 4096), "empty": {},
		"cut": zip(t, plain, 6)[:100_000], "tar cut": zip(t, plain[:100_000], 6), "damaged": damaged,
	} {
		if _, err := soci.Build(t.Context(), bytes.NewReader(layer), soci.BuildOptions{}); !errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := soci.Build(ctx, bytes.NewReader(zip(t, nil, 6)), soci.BuildOptions{}); !errors.Is(err, context.Canceled) || errors.Is(err, toc.ErrNotFormat) {
		t.Error(err)
	}
	want := errors.New("broken")
	r := io.MultiReader(bytes.NewReader(zip(t, toctest.Tar(t, toctest.Torture()), 6)[:1000]), errorReader{want})
	if _, err := soci.Build(t.Context(), r, soci.BuildOptions{}); !errors.Is(err, want) || errors.Is(err, toc.ErrNotFormat) {
		t.Error(err)
	}
}

// A span that nobody could decode, the last one too, is no reason to make an index.
func TestLargeSpansAreRefused(t *testing.T) {
	const n = 1 << 20
	layer := zip(t, toctest.Tar(t, []toctest.File{toctest.Reg("x", toctest.Random(1, n))}), 6)
	for _, c := range []struct {
		span, most int64
		want       error
	}{{100_000, 1 << 20, nil}, {100_000, 200_000, toc.ErrNotFormat}, {2 * n, 2*n + 100_000, nil}, {2 * n, n, toc.ErrNotFormat}} {
		if _, err := soci.Build(t.Context(), bytes.NewReader(layer), soci.BuildOptions{SpanSize: c.span, MaxSpan: c.most}); !errors.Is(err, c.want) {
			t.Errorf("spans of %d, at most %d: %v", c.span, c.most, err)
		}
	}
}

// A layer with too many checkpoints is not read to its end, and they are not all held.
func TestManyCheckpointsAreRefused(t *testing.T) {
	layer := bytes.NewReader(zip(t, toctest.Tar(t, []toctest.File{toctest.Reg("x", toctest.Random(1, 8<<20))}), 6))
	_, err := soci.Build(t.Context(), layer, soci.BuildOptions{SpanSize: 1 << 10, MaxCheckpoints: 10 << 15})
	if !errors.Is(err, toc.ErrLimit) || layer.Len() < 6<<20 {
		t.Errorf("%d bytes are left: %v", layer.Len(), err)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }
