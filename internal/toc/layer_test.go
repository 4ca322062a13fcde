package toc_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestLayerReadsItsEndOnce(t *testing.T) {
	for _, size := range []int{0, 10, 256 << 10, 1 << 20} {
		blob := &toctest.Blob{Bytes: toctest.Random(uint64(size), size)}
		l := &toc.Layer{Blob: blob}
		for _, n := range []int64{10, 100, 51} {
			tail, err := l.Tail(t.Context(), n)
			if want := blob.Bytes[max(0, size-int(n)):]; err != nil || !bytes.Equal(tail, want) {
				t.Errorf("%d of %d: %d bytes, %v", n, size, len(tail), err)
			}
		}
		if n := blob.Requests.Load(); n > 1 || (size > 0 && n == 0) {
			t.Errorf("%d requests", n)
		}
	}
}

func TestLayerOpensRanges(t *testing.T) {
	const size = 1 << 20
	blob := &toctest.Blob{Bytes: toctest.Random(1, size)}
	l := &toc.Layer{Blob: blob}
	if _, err := l.Tail(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	const kept = size - 256<<10
	for _, c := range []struct{ off, n, requests int64 }{
		{0, 10, 1}, {kept, 10, 0}, {size - 1, 1, 0}, {kept - 1, 1, 1}, {kept - 1, 2, 1}, {0, size, 1}, {100, size - 200, 1},
	} {
		before := blob.Requests.Load()
		r, err := l.Open(t.Context(), c.off, c.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, blob.Bytes[c.off:c.off+c.n]) {
			t.Errorf("[%d,+%d): %d bytes, %v", c.off, c.n, len(got), err)
		}
		if n := blob.Requests.Load() - before; n != c.requests {
			t.Errorf("[%d,+%d): %d requests", c.off, c.n, n)
		}
	}
	for _, c := range [][2]int64{{-1, 1}, {0, 0}, {0, -1}, {size, 1}, {1, size}, {1<<63 - 1, 1}, {1, 1<<63 - 1}} {
		if _, err := l.Open(t.Context(), c[0], c[1]); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%v: %v", c, err)
		}
	}
	if blob.Open.Load() != 0 {
		t.Errorf("%d readers open", blob.Open.Load())
	}
}

func packed(t testing.TB, codec toc.Codec, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&out)
	var err error
	if codec == toc.Stored {
		return b
	}
	if codec == toc.Zstd {
		w, err = zstd.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestDecodersDecodeConcurrently(t *testing.T) {
	var d toc.Decoders
	var wg sync.WaitGroup
	for _, codec := range []toc.Codec{toc.Stored, toc.Gzip, toc.Zstd} {
		for i := range 4 {
			want := append(toctest.Random(uint64(i), 100_000), toctest.Text(200_000)...)
			b := packed(t, codec, want)
			b = append(b, packed(t, codec, want)...) // members follow each other
			wg.Go(func() {
				for range 5 {
					r, err := d.Open(codec, bytes.NewReader(b))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(r)
					if err = errors.Join(err, r.Close(), r.Close()); err != nil || !bytes.Equal(got, append(want[:len(want):len(want)], want...)) {
						t.Errorf("%s: %d bytes, %v", codec, len(got), err)
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestDecodersRefuseWrongBytes(t *testing.T) {
	var d toc.Decoders
	for _, codec := range []toc.Codec{toc.Gzip, toc.Zstd} {
		good := packed(t, codec, toctest.Text(1000))
		for name, b := range map[string][]byte{
			"nothing": {}, "garbage": []byte("garbage of some length"), "cut": good[:len(good)-5], "damaged": bytes.Replace(good, good[20:24], []byte("xxxx"), 1),
		} {
			r, err := d.Open(codec, bytes.NewReader(b))
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if errClose := r.Close(); errClose != nil {
					t.Error(errClose)
				}
				// No frame at all is an empty stream of zstd.
				if err == nil && (codec != toc.Zstd || len(got) > 0 || len(b) > 0) {
					t.Errorf("%s: %s: %d bytes", codec, name, len(got))
				}
			}
			if err != nil && !strings.Contains(err.Error(), codec.String()) {
				t.Errorf("%s: %v", name, err)
			}
		}
		r, err := d.Open(codec, bytes.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	}
	if _, err := d.Open(9, nil); !errors.Is(err, toc.ErrInvalid) {
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	got, err := build(parse(t, "reg a 1; dir d; reg b 4096; reg e 0; reg a 4097; reg z 1"))
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int64{}
	for i, p := range got.Places() {
		at[got.Entries[i].Name] = p
	}
	if at["b"] != 4096 || at["a"] != 8192 || at["z"] != 16384 || got.DeviceSize() != 20480 {
		t.Errorf("%v, %d", at, got.DeviceSize())
	}
}
