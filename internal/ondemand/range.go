package ondemand

import "fmt"

// BlockSize is the unit of presence, in bytes.
const BlockSize = 4096

// Range is the half-open interval [Off, Off+Len) of an object, in bytes.
// Off and Len are never negative, and Off+Len never overflows; Clip makes such
// values out of foreign numbers.
type Range struct {
	Off, Len int64
}

// End is the first offset behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Empty tells whether the range holds no byte.
func (r Range) Empty() bool { return r.Len <= 0 }

// String prints the range as messages show it.
func (r Range) String() string { return fmt.Sprintf("[%d,+%d)", r.Off, r.Len) }

// Intersect is the part of r that is also in s; it is empty where they do not meet.
func (r Range) Intersect(s Range) Range {
	off, end := max(r.Off, s.Off), min(r.End(), s.End())
	if end <= off {
		return Range{Off: off}
	}
	return Range{Off: off, Len: end - off}
}

// Overlaps tells whether r and s share a byte.
func (r Range) Overlaps(s Range) bool { return !r.Intersect(s).Empty() }

// Contains tells whether every byte of s is in r.
func (r Range) Contains(s Range) bool {
	return s.Empty() || (s.Off >= r.Off && s.End() <= r.End())
}

// Clip makes a range inside an object of the given size out of an offset and a
// count as the kernel or a peer sent them: both unsigned, possibly beyond the
// end, possibly overflowing when added. What lies outside the object is cut off.
func Clip(off, count uint64, size int64) Range {
	if size <= 0 || off >= uint64(size) {
		return Range{Off: max(size, 0)}
	}
	left := uint64(size) - off
	return Range{Off: int64(off), Len: int64(min(count, left))}
}

// Blocks widens r to whole blocks, then cuts it at size: the end of an object
// is the end of its last, perhaps partial, block.
func (r Range) Blocks(size int64) Range {
	if r.Empty() {
		return Range{Off: r.Off}
	}
	off := r.Off &^ (BlockSize - 1)
	end := r.End()
	if rest := end % BlockSize; rest != 0 {
		if end > size-(BlockSize-rest) {
			end = size
		} else {
			end += BlockSize - rest
		}
	}
	end = min(end, size)
	return Range{Off: off, Len: max(end-off, 0)}
}

// BlockCount is the number of blocks of an object of the given size in bytes.
func BlockCount(size int64) int64 {
	n := size / BlockSize
	if size%BlockSize != 0 {
		n++
	}
	return n
}
