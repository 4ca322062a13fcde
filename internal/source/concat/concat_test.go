package concat_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/concat"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

const align = 4096

// lay lays parts of data out, each at a multiple of align, and returns what they
// make together.
func lay(digests bool, datas ...[]byte) (parts []concat.Part, whole []byte) {
	for _, data := range datas {
		p := concat.Part{Off: int64(len(whole)), Size: int64(len(data))}
		if digests {
			p.Digest, p.HasDigest = sha256.Sum256(data), true
		}
		parts = append(parts, p)
		whole = append(whole, data...)
		whole = append(whole, make([]byte, -len(whole)&(align-1))...)
	}
	return parts, whole
}

func join(t testing.TB, parts []concat.Part, size int, tell func(int, error), blobs ...source.Blob) *concat.Blob {
	t.Helper()
	b, err := concat.New(concat.Options{
		Size: int64(size), Parts: parts, Tell: tell,
		Open: func(i int) (source.Blob, error) { return blobs[i], nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSuite(t *testing.T) {
	for _, digests := range []bool{false, true} {
		sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
			// Cut in pieces of odd sizes; no zeros, because the suite has none.
			var parts []concat.Part
			var blobs []source.Blob
			for off, n := 0, 1; off < len(data); n = n*3 + 1 {
				piece := data[off:min(off+n, len(data))]
				p := concat.Part{Off: int64(off), Size: int64(len(piece)), HasDigest: digests, Digest: sha256.Sum256(piece)}
				parts, blobs = append(parts, p), append(blobs, mem.New(piece))
				off += len(piece)
			}
			return join(t, parts, len(data), nil, blobs...)
		})
	}
}

func TestBetweenPartsAreZeros(t *testing.T) {
	for _, digests := range []bool{false, true} {
		var datas [][]byte
		var blobs []source.Blob
		for i := range 40 {
			data := sourcetest.Bytes(1 + i*i*37)
			datas, blobs = append(datas, data), append(blobs, mem.New(data))
		}
		parts, whole := lay(digests, datas...)
		b := join(t, parts, len(whole), nil, blobs...)
		sourcetest.MustRead(t, b, whole, 0, b.Size())
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		for range 500 {
			off := random.Int64N(b.Size())
			n := 1 + random.Int64N(min(b.Size()-off, 3*align))
			sourcetest.MustRead(t, b, whole, off, n)
			from, length := b.Part(off)
			if off < from || off >= from+length {
				t.Fatalf("part of %d is [%d,+%d)", off, from, length)
			}
		}
		if from, n := b.Part(b.Size() - 1); from != parts[39].Off || from+n != b.Size() {
			t.Errorf("last part is [%d,+%d)", from, n)
		}
	}
}

func TestFailureIsThePartsOwn(t *testing.T) {
	good, changed, wrong := sourcetest.Bytes(10000), sourcetest.Bytes(9000), sourcetest.Bytes(8000)
	parts, whole := lay(true, good, changed, wrong, good)
	broken := &failing{mem.New(changed), source.ErrChanged}
	other := bytes.Clone(wrong)
	other[17] ^= 1
	told := make(map[int]error)
	b := join(t, parts, len(whole), func(i int, err error) { told[i] = err },
		mem.New(good), broken, mem.New(other), mem.New(good))
	sourcetest.MustRead(t, b, whole, 0, 12000)
	sourcetest.MustRead(t, b, whole, parts[3].Off-100, 10100)
	for i, want := range map[int]error{1: nil, 2: concat.ErrDigest} {
		got, err := sourcetest.Read(t.Context(), b, parts[i].Off+5, 10)
		var failed *concat.PartError
		if len(got) > 0 || !errors.As(err, &failed) || failed.Part != i || errors.Is(err, source.ErrChanged) || want != nil && !errors.Is(err, want) {
			t.Errorf("part %d: %d bytes, %v", i, len(got), err)
		}
	}
	if !errors.Is(told[1], source.ErrChanged) || !errors.Is(told[2], concat.ErrDigest) || told[0] != nil || len(told) != 4 {
		t.Errorf("told %v", told)
	}
	// What comes before the part that fails is right.
	got, err := sourcetest.Read(t.Context(), b, 0, b.Size())
	if err == nil || !bytes.Equal(got, whole[:parts[1].Off]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

type failing struct {
	source.Blob
	err error
}

func (f *failing) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) { return nil, f.err }

func TestAlignTakesWhatIsReadWhole(t *testing.T) {
	parts := []concat.Part{
		{Off: 0, Size: 100, HasDigest: true},
		{Off: 4096, Size: 8192},
		{Off: 12288, Size: concat.MaxWhole, HasDigest: true},
		{Off: 12288 + concat.MaxWhole, Size: concat.MaxWhole + 1, HasDigest: true},
	}
	b := join(t, parts, 12289+2*concat.MaxWhole, nil, make([]source.Blob, 4)...)
	for _, c := range [][4]int64{
		{50, 10, 0, 100}, {200, 10, 200, 10}, {4100, 10, 4100, 10}, {20000, 1, 12288, concat.MaxWhole},
		{12200, 4096, 12200, 88 + concat.MaxWhole}, {b.Size() - 10, 10, b.Size() - 10, 10},
	} {
		if off, n := b.Align(c[0], c[1]); off != c[2] || n != c[3] {
			t.Errorf("align [%d,+%d): [%d,+%d), want [%d,+%d)", c[0], c[1], off, n, c[2], c[3])
		}
	}
}

func TestPartsThatDoNotFit(t *testing.T) {
	for _, parts := range [][]concat.Part{
		{{Off: 0, Size: 0}}, {{Off: -1, Size: 2}}, {{Off: 0, Size: 11}}, {{Off: 0, Size: 5}, {Off: 4, Size: 1}}, {{Off: 5, Size: 1}, {Off: 0, Size: 1}},
		{{Off: 1, Size: 1<<63 - 1}},
	} {
		if _, err := concat.New(concat.Options{Size: 10, Parts: parts}); err == nil {
			t.Errorf("%v: no error", parts)
		}
	}
}
