package trace

import (
	"math/bits"
	"time"
)

// Latency is a histogram of durations, right to about a fifth from a
// microsecond to an hour. It is a plain value: a copy stands still.
type Latency struct {
	count [33 * steps]int64
	n     int64
}

// steps is how many buckets there are to each doubling.
const steps = 4

// N is how many durations it holds.
func (l *Latency) N() int64 { return l.n }

func (l *Latency) add(d time.Duration) {
	l.count[bucket(d)]++
	l.n++
}

// bucket is the index for d: its power of two in microseconds and its next two bits.
func bucket(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 1))
	power := bits.Len64(us) - 1
	next := us << 2 >> power & 3
	return min(power*steps+int(next), 33*steps-1)
}

// top is the least duration above bucket i.
func top(i int) time.Duration {
	i++
	return time.Duration(uint64(4+i%steps)<<(i/steps)) * time.Microsecond / 4
}

// Quantile is the duration that the share q of all (0.5: the median) does not
// exceed, rounded up to its bucket; 0 where there are none.
func (l *Latency) Quantile(q float64) time.Duration {
	left := int64(q * float64(l.n))
	for i, c := range l.count {
		if left -= c; c > 0 && left <= 0 {
			return top(i)
		}
	}
	return 0
}
