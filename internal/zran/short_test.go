//go:build !long

package zran

// How much TestRandomRangesEqualPlainData reads.
const (
	rangesSize  = 80_000 // of each stream's data
	rangesCount = 12     // of each stream and span
)
