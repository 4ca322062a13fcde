package ondemand

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestQuantileIsAtMostAQuarterTooHigh(t *testing.T) {
	durations := rapid.Custom(func(t *rapid.T) time.Duration {
		// Every order of magnitude is as likely as any other.
		return time.Duration(rapid.Int64Range(4, 1<<rapid.IntRange(3, 62).Draw(t, "bits")).Draw(t, "ns"))
	})
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(durations, 1, 200).Draw(t, "all")
		var h Histogram
		for _, d := range all {
			h.Add(d)
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 1} {
			exact := all[min(int(q*float64(len(all))), len(all)-1)]
			got := h.Quantile(q)
			if got < exact || float64(got) > 1.2500001*float64(exact) {
				t.Fatalf("quantile %v: %d, exactly %d", q, got, exact)
			}
		}
	})
}

func TestHistogramEdges(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("empty: %v", got)
	}
	for _, d := range []time.Duration{math.MinInt64, -1, 0, 1, 2, 3} {
		var h Histogram
		h.Add(d)
		if got := h.Quantile(0.5); got < max(d, 1) || got > 4 {
			t.Errorf("%d: %d", d, got)
		}
	}
	h.Add(math.MaxInt64)
	if got := h.Quantile(1); got != math.MaxInt64 {
		t.Errorf("longest: %d", got)
	}
}
