package retry

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"io"

	"github.com/lacunafs/lacuna/internal/source"
)

// tailSize is how much of what was delivered last is asked for once more where
// a source has no validator.
const tailSize = 4096

// delivered is what a reader remembers of the bytes that it has delivered, to
// know them again.
type delivered struct {
	unbound bool         // the source has no validator
	whole   bool         // a second reading begins at the start
	sum     maphash.Hash // of all, where both
	tail    []byte       // the last bytes, where only unbound
}

// note remembers p, which is delivered.
func (d *delivered) note(p []byte) {
	switch {
	case !d.unbound:
	case d.whole:
		if _, err := d.sum.Write(p); err != nil {
			panic("retry: internal error: " + err.Error()) // maphash never fails
		}
	default:
		p = p[max(len(p)-tailSize, 0):]
		keep := d.tail[max(len(d.tail)+len(p)-tailSize, 0):]
		d.tail = append(append(d.tail[:0], keep...), p...)
	}
}

// overlap is how many of the got bytes that were delivered the next request
// brings again.
func (d *delivered) overlap(got int64) int64 {
	if d.whole {
		return got
	}
	return int64(len(d.tail))
}

// pass reads the n bytes of body that were delivered already, and compares them
// where nothing else tells that they are the same.
func (d *delivered) pass(body io.Reader, n int64) error {
	var sum maphash.Hash
	var tail bytes.Buffer
	to := io.Discard
	switch {
	case n == 0:
		return nil
	case !d.unbound:
	case d.whole:
		sum.SetSeed(d.sum.Seed())
		to = &sum
	default:
		to = &tail
	}
	if passed, err := io.CopyN(to, body, n); err != nil {
		return short(err, passed, n)
	}
	if d.unbound && (d.whole && sum.Sum64() != d.sum.Sum64() || !d.whole && !bytes.Equal(tail.Bytes(), d.tail)) {
		return fmt.Errorf("%w: bytes read before are other ones now", source.ErrChanged)
	}
	return nil
}
