package ondemand

import (
	"math"
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are a quarter of a power of two
// wide, so a quantile is at most a quarter too high. The zero value is empty. It
// has no lock of its own.
type Histogram struct {
	buckets [64 * 4]uint64
	count   uint64
}

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 1))
	exp := bits.Len64(n) - 1
	quarter := 0
	if exp >= 2 {
		quarter = int(n>>(exp-2)) & 3
	}
	return exp*4 + quarter
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
}

// Quantile is the upper edge of the bucket that holds the q-th part (0 to 1) of
// all durations, 0 where there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := uint64(q * float64(h.count))
	var seen uint64
	for i, n := range h.buckets {
		if seen += n; n > 0 && seen > min(rank, h.count-1) {
			exp, quarter := i/4, i%4
			if exp < 2 {
				return time.Duration(1) << (exp + 1)
			}
			// The edge of the last bucket is one more than a Duration holds.
			return time.Duration(min(uint64(5+quarter)<<(exp-2), math.MaxInt64))
		}
	}
	return 0
}
