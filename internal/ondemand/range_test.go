package ondemand

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// bytesOf is a range as the set of bytes in it: what all of range.go is proved against.
func bytesOf(r Range, n int64) []bool {
	set := make([]bool, n)
	for i := range set {
		set[i] = int64(i) >= r.Off && int64(i) < r.Off+r.Len
	}
	return set
}

func smallRange(t *rapid.T, label string) Range {
	return Range{Off: rapid.Int64Range(0, 60).Draw(t, label+".off"), Len: rapid.Int64Range(0, 60).Draw(t, label+".len")}
}

func TestRangesAreSetsOfBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := smallRange(t, "r"), smallRange(t, "s")
		const n = 130
		inR, inS, got := bytesOf(r, n), bytesOf(s, n), bytesOf(r.Intersect(s), n)
		meet, outside := false, false
		for i := range n {
			if got[i] != (inR[i] && inS[i]) {
				t.Fatalf("%v with %v is %v", r, s, r.Intersect(s))
			}
			meet = meet || inR[i] && inS[i]
			outside = outside || inS[i] && !inR[i]
		}
		if r.Overlaps(s) != meet || r.Contains(s) == outside || r.Empty() != (r.Len == 0) {
			t.Fatalf("%v and %v: overlaps %v, contains %v", r, s, r.Overlaps(s), r.Contains(s))
		}
	})
}

// edge draws numbers near those where arithmetic goes wrong.
func edge(t *rapid.T, label string) uint64 {
	near := rapid.SampledFrom([]uint64{
		0, BlockSize, 10 * BlockSize, 1 << 32, 1 << 62,
		math.MaxInt64 - BlockSize, math.MaxInt64, math.MaxUint64 - BlockSize, math.MaxUint64,
	}).Draw(t, label)
	return near + uint64(rapid.Int64Range(-BlockSize-1, BlockSize+1).Draw(t, label+".delta"))
}

func TestClipStaysInsideTheObject(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		off, count, size := edge(t, "off"), edge(t, "count"), int64(edge(t, "size"))
		r := Clip(off, count, size)
		size = max(size, 0)
		if r.Off < 0 || r.Len < 0 || r.Off > size || r.Len > size-r.Off {
			t.Fatalf("%v does not lie in %d", r, size)
		}
		// The byte at x is in r exactly where it is in the object and was asked for.
		for _, x := range []uint64{off, off + count/2, off + count - 1, off - 1, uint64(size) - 1} {
			asked := x >= off && x-off < count
			inside := x < uint64(size)
			if got := x >= uint64(r.Off) && x-uint64(r.Off) < uint64(r.Len); got != (asked && inside) {
				t.Fatalf("clip %d+%d to %d: %v, byte %d in it: %v", off, count, size, r, x, got)
			}
		}
	})
}

func TestBlocksWidensAndCutsAtTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := int64(edge(t, "size") & math.MaxInt64)
		r := Clip(edge(t, "off"), edge(t, "count"), size)
		b := r.Blocks(size)
		if r.Empty() {
			if !b.Empty() {
				t.Fatalf("%v of %d became %v", r, size, b)
			}
			return
		}
		if !b.Contains(r) || !(Range{Len: size}).Contains(b) {
			t.Fatalf("%v of %d became %v", r, size, b)
		}
		if b.Off%BlockSize != 0 || (b.End()%BlockSize != 0 && b.End() != size) {
			t.Fatalf("%v of %d became %v, which cuts a block", r, size, b)
		}
		if r.Off-b.Off >= BlockSize || b.End()-r.End() >= BlockSize {
			t.Fatalf("%v of %d became %v, more than needed", r, size, b)
		}
	})
}

func TestBlocksBehindTheEndAreEmpty(t *testing.T) {
	for _, r := range []Range{{Off: 8192, Len: 10}, {Off: 10001, Len: 1}, {Off: math.MaxInt64 - 1, Len: 1}} {
		if b := r.Blocks(4000); !b.Empty() || b.End() < 0 {
			t.Errorf("%v became %v", r, b)
		}
	}
}

func TestBlockCount(t *testing.T) {
	for size, want := range map[int64]int64{
		0: 0, 1: 1, 4095: 1, 4096: 1, 4097: 2, 1 << 40: 1 << 28, math.MaxInt64: 1 << 51,
	} {
		if got := BlockCount(size); got != want {
			t.Errorf("%d bytes: %d blocks, want %d", size, got, want)
		}
	}
}
