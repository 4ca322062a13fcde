//go:build long

package zran

// 10,000 ranges and more of each kind of stream.
const (
	rangesSize  = 300_000
	rangesCount = 300
)
