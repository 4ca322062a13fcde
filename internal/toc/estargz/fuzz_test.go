package estargz

import (
	"errors"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
)

// FuzzFooter wants what a footer says to lie in the blob before the footer.
func FuzzFooter(f *testing.F) {
	f.Add(footer51(100), int64(1000))
	f.Add(footer47(1), int64(48))
	f.Add(append(footer51(9), footer47(3)...), int64(200))
	f.Fuzz(func(t *testing.T, tail []byte, blob int64) {
		if blob < int64(len(tail)) {
			return
		}
		off, n, err := position(tail, blob)
		if err != nil {
			if !errors.Is(err, toc.ErrNotFormat) && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if off <= 0 || n <= 0 || n > toc.MaxPacked || off > blob-n || blob-off-n < 47 {
			t.Errorf("[%d,+%d) of %d bytes", off, n, blob)
		}
	})
}
