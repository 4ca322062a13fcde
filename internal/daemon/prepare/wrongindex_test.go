package prepare

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/toc"
)

// lyingIndex is an index whose zTOC two registries send wrongly.
func lyingIndex(t *testing.T) (*index, []*sourcetest.Liar) {
	t.Helper()
	x := slowIndex(t, 1<<20, time.Microsecond)
	from := origins.New(source.Identity{Size: x.remote.Size()})
	var all []*sourcetest.Liar
	for _, name := range []string{"a.example", "b.example"} {
		l := &sourcetest.Liar{Blob: x.remote, Name: name}
		l.Lie(100, 101)
		if err := from.Add(l, name); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	x.remote = from
	return x, all
}

func TestIndexIsHadFromAnotherRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, all := lyingIndex(t)
		all[1].Lie(0, 0)
		if err := x.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if asked, _ := l.Asked(); asked != 1 {
				t.Errorf("%s was asked %d times", l.Name, asked)
			}
		}
	})
}

// A zTOC that everybody sends wrongly is not asked for with each read, and not given up
// for ever.
func TestWrongIndexIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, all := lyingIndex(t)
		for range 3 {
			err := x.settle(t.Context())
			if !errors.Is(err, toc.ErrDigest) || !errors.Is(err, source.ErrNotBytes) || !strings.Contains(err.Error(), "came from a.example, b.example") ||
				!strings.Contains(err.Error(), ": fetch the zTOC: ") || strings.Contains(err.Error(), "write ") {
				t.Errorf("%v", err)
			}
		}
		for _, l := range all {
			if asked, refuted := l.Asked(); asked != 1 || refuted != 1 {
				t.Errorf("%s was asked %d times, refuted %d times", l.Name, asked, refuted)
			}
			l.Lie(0, 0)
		}
		if _, err := os.Stat(x.library.ztocPath(x.id)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is kept: %v", err)
		}
		<-time.After(wrongFor)
		if err := x.settle(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
