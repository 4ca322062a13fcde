package ondemandtest

import (
	"bytes"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

func TestMain(m *testing.M) {
	BeReader()
	leaktest.Main(m)
}

func TestBytesDoNotDependOnWhereARangeStarts(t *testing.T) {
	whole := Bytes(7, ondemand.Range{Len: 30000})
	if len(whole) != 30000 || bytes.IndexByte(whole, 0) >= 0 {
		t.Fatalf("%d bytes, zero at %d", len(whole), bytes.IndexByte(whole, 0))
	}
	for off := int64(0); off < 9000; off += 101 {
		for n := int64(0); n < 9000; n += 353 {
			if got := Bytes(7, ondemand.Range{Off: off, Len: n}); !bytes.Equal(got, whole[off:off+n]) {
				t.Fatalf("[%d,+%d) differs", off, n)
			}
		}
	}
}

func TestBytesDifferFromObjectToObjectAndPlaceToPlace(t *testing.T) {
	seen := make(map[string]bool)
	for seed := range int64(20) {
		for block := range int64(100) {
			b := string(Bytes(seed, ondemand.Range{Off: block * 4096, Len: 64}))
			if seen[b] {
				t.Fatalf("object %d, block %d: seen before", seed, block)
			}
			seen[b] = true
		}
	}
}

func TestReaderReadsAndTellsErrors(t *testing.T) {
	o := NewObject(t, t.TempDir(), 3, 10000)
	if err := o.Write(ondemand.Range{Len: 10000}); err != nil {
		t.Fatal(err)
	}
	r := StartReader(t)
	for _, c := range []struct {
		off int64
		n   int
	}{{0, 10000}, {5000, 10000}, {10000, 5}} {
		want := Bytes(3, ondemand.Range{Off: c.off, Len: min(int64(c.n), 10000-c.off)})
		if got := r.Read(o.Path, c.off, c.n); got.Err != nil || got.Errno != 0 || !bytes.Equal(got.Data, want) {
			t.Errorf("read [%d,+%d): %+v", c.off, c.n, got)
		}
	}
	if got := r.Read(o.Path+"-absent", 0, 1); got.Err == nil {
		t.Error("an absent file was read")
	}
	r.Kill()
	if got := r.Read(o.Path, 0, 1); got.Err == nil {
		t.Error("a reader that is gone answered")
	}
}
