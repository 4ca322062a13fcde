package daemon

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

func TestFilesOfWhichNothingIsPresentAreCounted(t *testing.T) {
	const block = ondemand.BlockSize
	files := []ondemand.Range{
		{Len: 10}, {Off: block, Len: 3 * block}, {Off: 4 * block, Len: block + 1}, {Off: 6 * block, Len: 1},
	}
	for name, c := range map[string]struct {
		missing []ondemand.Range
		want    int
	}{
		"all present":             {nil, 0},
		"all missing":             {[]ondemand.Range{{Len: 7 * block}}, 4},
		"the first":               {[]ondemand.Range{{Len: block}}, 1},
		"the second in part":      {[]ondemand.Range{{Len: 3 * block}, {Off: 5 * block, Len: block}}, 1},
		"its end, and the third":  {[]ondemand.Range{{Off: 2 * block, Len: 4 * block}}, 1},
		"the second and the last": {[]ondemand.Range{{Off: block, Len: 3 * block}, {Off: 6 * block, Len: block}}, 2},
		"a block of the third":    {[]ondemand.Range{{Off: 5 * block, Len: block}}, 0},
	} {
		if n := allMissing(files, c.missing); n != c.want {
			t.Errorf("%s: %d, want %d", name, n, c.want)
		}
	}
}
