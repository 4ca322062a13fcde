package ranged

import (
	"fmt"
	"math"
	"strings"
)

// ContentRange is a Content-Range header of unit bytes (RFC 9110 section 14.4).
type ContentRange struct {
	First, Last int64 // inclusive; both 0 where Unsatisfied
	Size        int64 // of the whole file; -1: "*", not known
	Unsatisfied bool  // "bytes */SIZE", which comes with status 416
}

// String is the header's canonical text.
func (c ContentRange) String() string {
	switch {
	case c.Unsatisfied:
		return fmt.Sprintf("bytes */%d", c.Size)
	case c.Size < 0:
		return fmt.Sprintf("bytes %d-%d/*", c.First, c.Last)
	}
	return fmt.Sprintf("bytes %d-%d/%d", c.First, c.Last, c.Size)
}

// parseContentRange accepts exactly the grammar
//
//	"bytes" SP ( first "-" last "/" ( size / "*" ) / "*/" size )
//
// with first <= last < size, where the unit may be in any case (section 14.1)
// and no number exceeds an int64. Anything else may not be guessed at: it says which bytes these are.
func parseContentRange(s string) (ContentRange, error) {
	bad := fmt.Errorf("malformed Content-Range %q", s[:min(len(s), 80)])
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return ContentRange{}, bad
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return ContentRange{}, bad
	}
	c := ContentRange{Size: -1}
	if total != "*" {
		if c.Size, ok = parseDigits(total); !ok {
			return ContentRange{}, bad
		}
	}
	if span == "*" {
		c.Unsatisfied = true
		if c.Size < 0 {
			return ContentRange{}, bad
		}
		return c, nil
	}
	first, last, dash := strings.Cut(span, "-")
	var ok1, ok2 bool
	c.First, ok1 = parseDigits(first)
	c.Last, ok2 = parseDigits(last)
	if !dash || !ok1 || !ok2 || c.First > c.Last || c.Size >= 0 && c.Last >= c.Size {
		return ContentRange{}, bad
	}
	return c, nil
}

// parseDigits reads 1*DIGIT; strconv would also take signs.
func parseDigits(s string) (int64, bool) {
	var n int64
	for _, c := range []byte(s) {
		d := int64(c) - '0'
		if d < 0 || d > 9 || n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, s != ""
}
