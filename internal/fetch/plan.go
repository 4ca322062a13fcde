package fetch

import "github.com/lacunafs/lacuna/internal/ondemand"

const (
	// unit is the least that a demand fetches, aligned to itself. A request
	// costs a round trip however small it is, and a body of up to ten
	// segments (RFC 6928, about 14 KiB) comes in the same round trip even on
	// a connection that was idle; from there on bytes cost time. A random
	// reader of 4 KiB so fetches at most four times what it reads, at no
	// more latency, and has the neighbours that it usually reads next.
	unit = 16 << 10

	// joinGap is how much present data between two missing ranges is
	// fetched again to save a request: 64 KiB take 5 ms at 100 Mbit/s, less
	// than the round trip to most sources.
	joinGap = 64 << 10

	// far is how much body may lie between where a stream is and what a
	// demand wants of it before the demand makes a request of its own.
	far = 2 << 20

	// piece is the size of a stream's buffer, and so of its writes when the
	// source is fast. smallPiece is the buffer of a short stream, and how
	// much is written at once when the source is slow.
	piece      = 256 << 10
	smallPiece = 64 << 10

	// drain is how much of an unwanted body is read to its end rather than
	// cancelled: cancelling costs an HTTP/1.1 connection.
	drain = 256 << 10
)

// widen is r widened to units, cut at size.
func widen(r ondemand.Range, size int64) ondemand.Range {
	off := r.Off &^ (unit - 1)
	end := size
	if r.End() <= size-unit {
		end = (r.End() + unit - 1) &^ (unit - 1)
	}
	return ondemand.Range{Off: off, Len: end - off}
}

// subtract is parts without cut.
func subtract(parts []ondemand.Range, cut ondemand.Range) []ondemand.Range {
	var out []ondemand.Range
	for _, p := range parts {
		if !p.Overlaps(cut) {
			out = append(out, p)
			continue
		}
		if p.Off < cut.Off {
			out = append(out, ondemand.Range{Off: p.Off, Len: cut.Off - p.Off})
		}
		if cut.End() < p.End() {
			out = append(out, ondemand.Range{Off: cut.End(), Len: p.End() - cut.End()})
		}
	}
	return out
}

// join makes one range of neighbours that are at most joinGap apart. parts are
// in order and do not overlap.
func join(parts []ondemand.Range) []ondemand.Range {
	var out []ondemand.Range
	for _, p := range parts {
		if n := len(out); n > 0 && p.Off-out[n-1].End() <= joinGap {
			out[n-1].Len = p.End() - out[n-1].Off
			continue
		}
		out = append(out, p)
	}
	return out
}

// firstIn is the first byte of parts that lies in span, or -1.
func firstIn(parts []ondemand.Range, span ondemand.Range) int64 {
	for _, p := range parts {
		if x := p.Intersect(span); !x.Empty() {
			return x.Off
		}
	}
	return -1
}
