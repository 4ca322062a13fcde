package spans

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// lied is the decompressed bytes of a file that several origins have. There is one place
// for a request, so that none may be left open.
func lied(t *testing.T, data []byte, members int, names ...string) (*Blob, []*sourcetest.Liar, int64) {
	t.Helper()
	file := pack(t, data, members)
	from := origins.New(source.Identity{Size: int64(len(file)), Validator: "v"})
	group := limit.NewGroup(1)
	var all []*sourcetest.Liar
	for _, name := range names {
		l := &sourcetest.Liar{Blob: mem.New(file), Name: name}
		all = append(all, l)
		if err := from.Add(group.Demand(l), name); err != nil {
			t.Fatal(err)
		}
	}
	b := New(retry.Wrap(from, retry.Policy{First: time.Millisecond}), indexOf(t, file, 50_000), NewGate())
	t.Cleanup(func() {
		wantFree(t, b.gate)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, all, int64(len(file))
}

// Wrong bytes of one origin are never shown, and are had from another; a span that
// begins in the last byte of the one before is no exception.
func TestWrongBytesAreHadElsewhere(t *testing.T) {
	data := text(300_000, 12)
	for _, members := range []int{1, 3} {
		b, all, end := lied(t, data, members, "a", "b")
		for _, lie := range [][2]int64{{0, end}, {end / 2, end/2 + 1}, {end - 20, end}, {end / 3, end}} {
			all[0].Lie(lie[0], lie[1])
			for _, at := range []int64{0, 123_456} {
				sourcetest.MustRead(t, b, data, at, b.Size()-at)
			}
			all[0].Lie(0, 0)
			// Now the first has to be asked again: the second lies.
			all[1].Lie(lie[0], lie[1])
			sourcetest.MustRead(t, b, data, 0, b.Size())
			all[1].Lie(0, 0)
		}
	}
}

func TestAllOriginsAreWrong(t *testing.T) {
	data := text(300_000, 13)
	b, all, end := lied(t, data, 1, "a.example", "b.example")
	for _, o := range all {
		o.Lie(0, end)
	}
	got, err := sourcetest.Read(t.Context(), b, 0, b.Size())
	if !errors.Is(err, source.ErrNotBytes) || len(got) > 0 || !strings.Contains(err.Error(), "(wrong bytes came from a.example, b.example)") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, o := range all {
		if asked, refuted := o.Asked(); asked != 1 || refuted != 1 {
			t.Errorf("%s: %d requests, %d refuted", o.Name, asked, refuted)
		}
		o.Lie(0, 0)
	}
	sourcetest.MustRead(t, b, data, 0, b.Size())
}
