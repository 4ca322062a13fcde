package device

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// packer compresses data; making an encoder takes longer than using it.
func packer(t testing.TB, codec toc.Codec) func(data []byte) []byte {
	t.Helper()
	switch codec {
	case toc.Gzip:
		w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		return func(data []byte) []byte {
			var b bytes.Buffer
			w.Reset(&b)
			_, err := w.Write(data)
			if err = errors.Join(err, w.Close()); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		}
	case toc.Zstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			t.Fatal(err)
		}
		return func(data []byte) []byte { return w.EncodeAll(data, nil) }
	}
	return func(data []byte) []byte { return data }
}

// sample is a layer with its table of contents, and what its device is.
type sample struct {
	blob, device []byte
	toc          *toc.TOC
}

// layout says how a sample's files are cut: chunk is the largest chunk, shared how
// many of them share a compressed range, gap what lies between ranges.
type layout struct {
	codec       toc.Codec
	chunk       int
	shared, gap int
	noDigests   bool
}

// newSample makes a layer of files; in a sparse one each third chunk is a hole.
func newSample(t testing.TB, l layout, sparse bool, files ...[]byte) *sample {
	t.Helper()
	s := &sample{}
	b := toc.NewBuilder(0)
	blob := bytes.NewBuffer(make([]byte, l.gap))
	type waiting struct {
		entry int
		chunk toc.Chunk
	}
	var shared []waiting
	var data []byte
	pack := packer(t, l.codec)
	flush := func() {
		packed := pack(data)
		for _, w := range shared {
			w.chunk.BlobOff, w.chunk.BlobLen, w.chunk.Codec = int64(blob.Len()), int64(len(packed)), l.codec
			if err := b.AddChunk(w.entry, w.chunk); err != nil {
				t.Fatal(err)
			}
		}
		blob.Write(packed)
		blob.Write(make([]byte, l.gap))
		shared, data = nil, nil
	}
	for n, content := range files {
		i, err := b.Add(toc.Entry{Name: fmt.Sprintf("file%03d", n), Type: toc.Regular, Size: int64(len(content))})
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(content)
		for off, k := 0, 0; off < len(content); off, k = off+l.chunk, k+1 {
			part := content[off:min(off+l.chunk, len(content))]
			if sparse && k%3 == 1 {
				clear(want[off : off+len(part)])
				continue
			}
			c := toc.Chunk{Off: int64(off), Len: int64(len(part)), Inner: int64(len(data))}
			if !l.noDigests {
				c.Digest = fmt.Sprintf("sha256:%x", sha256.Sum256(part))
			}
			shared, data = append(shared, waiting{i, c}), append(data, part...)
			if len(shared) >= l.shared {
				flush()
			}
		}
		s.device = append(s.device, want...)
		s.device = append(s.device, make([]byte, (toc.BlockSize-len(want)%toc.BlockSize)%toc.BlockSize)...)
	}
	if len(shared) > 0 {
		flush()
	}
	s.blob = blob.Bytes()
	b.SetBlobSize(int64(len(s.blob)))
	var err error
	if s.toc, err = b.Finish(); err != nil {
		t.Fatal(err)
	}
	return s
}

func someFiles() [][]byte {
	return [][]byte{
		toctest.Random(1, 5000), {}, toctest.Text(120_000), toctest.Random(2, 4096), toctest.Random(3, 1),
		toctest.Random(4, 90_001), make([]byte, 70_000), toctest.Text(4097),
	}
}

func layouts() map[string]layout {
	return map[string]layout{
		"a member for each chunk": {codec: toc.Gzip, chunk: 50_000, shared: 1},
		"shared members":          {codec: toc.Gzip, chunk: 30_000, shared: 4},
		"frames":                  {codec: toc.Zstd, chunk: 64 << 10, shared: 1},
		"shared frames":           {codec: toc.Zstd, chunk: 9_000, shared: 3, gap: 100},
		"stored":                  {codec: toc.Stored, chunk: 100_000, shared: 1, gap: 512},
		"far apart":               {codec: toc.Gzip, chunk: 50_000, shared: 1, gap: joinGap + 1},
		"small chunks":            {codec: toc.Zstd, chunk: 5_000, shared: 1},
		"without digests":         {codec: toc.Gzip, chunk: 50_000, shared: 2, noDigests: true},
	}
}

func open(t testing.TB, s *sample, layer source.Blob) *Blob {
	t.Helper()
	d, err := New(layer, s.toc, NewGate())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if d.Size() != int64(len(s.device)) {
		t.Fatalf("device of %d bytes, want %d", d.Size(), len(s.device))
	}
	return d
}

func TestRangesOfADevice(t *testing.T) {
	for name, l := range layouts() {
		for _, sparse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, sparse %v", name, sparse), func(t *testing.T) {
				s := newSample(t, l, sparse, someFiles()...)
				d := open(t, s, mem.New(s.blob))
				if d.Verified() == l.noDigests {
					t.Errorf("verified: %v", d.Verified())
				}
				sourcetest.MustRead(t, d, s.device, 0, d.Size())
				rng := rand.New(rand.NewPCG(1, 2))
				for range 30 {
					n := 1 + rng.Int64N(min(d.Size(), 100_000))
					off := rng.Int64N(d.Size() - n + 1)
					sourcetest.MustRead(t, d, s.device, off, n)
					at, m := d.Align(off, n)
					if at > off || at+m < off+n || at < 0 || at+m > d.Size() {
						t.Fatalf("[%d,+%d) aligned is [%d,+%d)", off, n, at, m)
					}
					if again, k := d.Align(at, m); again != at || k != m {
						t.Fatalf("[%d,+%d) aligned is [%d,+%d)", at, m, again, k)
					}
					sourcetest.MustRead(t, d, s.device, at, m)
				}
			})
		}
	}
}

// What lies together in the layer is one request.
func TestWholeDeviceIsOneRequest(t *testing.T) {
	for name, l := range layouts() {
		s := newSample(t, l, false, someFiles()...)
		layer := &toctest.Blob{Bytes: s.blob}
		d := open(t, s, toctestSource{layer})
		sourcetest.MustRead(t, d, s.device, 0, d.Size())
		if n := layer.Requests.Load(); (n != 1) != (l.gap > joinGap) || layer.Open.Load() != 0 {
			t.Errorf("%s: %d requests, %d open", name, n, layer.Open.Load())
		}
		if sent := layer.Sent.Load(); sent > int64(len(s.blob)) {
			t.Errorf("%s: %d bytes asked for of %d", name, sent, len(s.blob))
		}
	}
}

type toctestSource struct{ *toctest.Blob }

func (toctestSource) Close() error { return nil }

// cut is a device as a blob of exactly the bytes of its one file.
type cut struct {
	source.Blob
	size int64
}

func (c cut) Size() int64 { return c.size }

func (c cut) Identity() source.Identity { return source.Identity{Size: c.size} }

func (c cut) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(c, off, n); err != nil {
		return nil, err
	}
	return c.Blob.ReadRange(ctx, off, n)
}

func TestDeviceIsASource(t *testing.T) {
	for _, l := range []layout{{codec: toc.Stored, chunk: 10_000, shared: 1}, {codec: toc.Zstd, chunk: 64 << 10, shared: 3}} {
		t.Run(l.codec.String(), func(t *testing.T) {
			sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
				s := newSample(t, l, false, data)
				d, err := New(mem.New(s.blob), s.toc, NewGate())
				if err != nil {
					t.Fatal(err)
				}
				return cut{d, int64(len(data))}
			})
		})
	}
}

// Whatever fails, what is read is right as far as it goes.
func TestEveryOperationOfTheLayerFails(t *testing.T) {
	for name, l := range layouts() {
		t.Run(name, func(t *testing.T) {
			s := newSample(t, l, true, someFiles()...)
			for n := int64(1); ; n++ {
				failing := sourcetest.FailNth(mem.New(s.blob), n, nil)
				d := open(t, s, failing)
				r, err := d.ReadRange(t.Context(), 0, d.Size())
				var got []byte
				if err == nil {
					got, err = io.ReadAll(r)
					err = errors.Join(err, r.Close())
				}
				if !bytes.HasPrefix(s.device, got) || err == nil && len(got) != len(s.device) {
					t.Fatalf("operation %d: wrong bytes, %v", n, err)
				}
				if !failing.Fired() {
					break
				}
				if n > 10_000 {
					t.Fatal("no end")
				}
			}
		})
	}
}

// No bit of the layer can be changed without an error, or without effect.
func TestChangedLayerIsNeverWrongBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for name, l := range layouts() {
		if l.noDigests {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := newSample(t, l, false, someFiles()...)
			failed := 0
			for range 20 {
				blob := bytes.Clone(s.blob)
				blob[rng.IntN(len(blob))] ^= 1 << rng.IntN(8)
				d := open(t, s, mem.New(blob))
				got, err := sourcetest.Read(t.Context(), d, 0, d.Size())
				if !bytes.HasPrefix(s.device, got) || err == nil && len(got) != len(s.device) {
					t.Fatalf("wrong bytes, %v", err)
				}
				if err != nil {
					failed++
				}
			}
			if failed == 0 && l.gap < joinGap {
				t.Error("nothing was noticed")
			}
		})
	}
}

// A chunk of other bytes is an error that retrying may cure, as a bad mirror's is.
func TestWrongDigestIsTold(t *testing.T) {
	s := newSample(t, layout{codec: toc.Stored, chunk: 10_000, shared: 1}, false, toctest.Random(1, 30_000))
	blob := bytes.Clone(s.blob)
	blob[15_000] ^= 1
	d := open(t, s, mem.New(blob))
	_, err := sourcetest.Read(t.Context(), d, 10_000, 100)
	if !errors.Is(err, toc.ErrDigest) || !errors.Is(err, source.ErrNotBytes) {
		t.Errorf("got %v", err)
	}
	sourcetest.MustRead(t, d, s.device, 0, 10_000)
	sourcetest.MustRead(t, d, s.device, 20_000, 10_000)
}

func TestTablesThatDoNotFitTheLayer(t *testing.T) {
	s := newSample(t, layout{codec: toc.Stored, chunk: 10_000, shared: 1}, false, toctest.Random(1, 30_000))
	if _, err := New(mem.New(s.blob[:100]), s.toc, NewGate()); err == nil {
		t.Error("a layer of another size is taken")
	}
	for name, change := range map[string]func(*toc.Chunk){
		"digest of another kind": func(c *toc.Chunk) { c.Digest = "sha512:" + c.Digest[7:] },
		"short digest":           func(c *toc.Chunk) { c.Digest = c.Digest[:20] },
		"huge chunk":             func(c *toc.Chunk) { c.Len = MaxChunk + 1 },
	} {
		s := newSample(t, layout{codec: toc.Stored, chunk: 10_000, shared: 1}, false, toctest.Random(1, 30_000))
		change(&s.toc.Entries[0].Chunks[1])
		if _, err := New(mem.New(s.blob), s.toc, NewGate()); !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClosedDevice(t *testing.T) {
	s := newSample(t, layout{codec: toc.Gzip, chunk: 10_000, shared: 1}, false, toctest.Random(1, 30_000))
	d, err := New(mem.New(s.blob), s.toc, NewGate())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadRange(t.Context(), 0, 10); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
