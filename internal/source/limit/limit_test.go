package limit_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func TestSuite(t *testing.T) {
	one, three := limit.NewGroup(1), limit.NewGroup(3)
	t.Run("demand", func(t *testing.T) {
		sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob { return one.Demand(mem.New(data)) })
	})
	t.Run("ahead", func(t *testing.T) {
		sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob { return three.Ahead(mem.New(data)) })
	})
	for _, g := range []*limit.Group{one, three} {
		if taken, d, a := g.InUse(); taken != 0 || d != 0 || a != 0 {
			t.Fatalf("after all: %d taken, %d and %d waiting", taken, d, a)
		}
	}
}

// hold takes a place and returns its reader.
func hold(ctx context.Context, t *testing.T, b source.Blob) io.Closer {
	t.Helper()
	r, err := b.ReadRange(ctx, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClose(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestDemandGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := limit.NewGroup(1)
		b := mem.New([]byte("x"))
		first := hold(t.Context(), t, g.Ahead(b))
		var order []string
		ask := func(name string, b source.Blob) {
			go func() {
				r := hold(t.Context(), t, b)
				order = append(order, name)
				mustClose(t, r)
			}()
			synctest.Wait()
		}
		ask("ahead 1", g.Ahead(b))
		ask("ahead 2", g.Ahead(b))
		ask("demand 1", g.Demand(b))
		ask("demand 2", g.Demand(b))
		if taken, d, a := g.InUse(); taken != 1 || d != 2 || a != 2 {
			t.Fatalf("%d taken, %d and %d waiting", taken, d, a)
		}
		mustClose(t, first)
		mustClose(t, first) // frees one place, not two
		synctest.Wait()
		if want := []string{"demand 1", "demand 2", "ahead 1", "ahead 2"}; !slices.Equal(order, want) {
			t.Fatalf("order %v", order)
		}
	})
}

func TestAheadLeavesAPlaceToDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := limit.NewGroup(3)
		b := mem.New([]byte("x"))
		a1, a2 := hold(t.Context(), t, g.Ahead(b)), hold(t.Context(), t, g.Ahead(b))
		ctx, cancel := context.WithCancel(t.Context())
		third := make(chan error)
		go func() {
			_, err := g.Ahead(b).ReadRange(ctx, 0, 1)
			third <- err
		}()
		synctest.Wait()
		d := hold(t.Context(), t, g.Demand(b))
		cancel()
		if err := <-third; !errors.Is(err, context.Canceled) {
			t.Fatalf("third read-ahead: %v", err)
		}
		for _, c := range []io.Closer{a1, a2, d} {
			mustClose(t, c)
		}
		if taken, d, a := g.InUse(); taken != 0 || d != 0 || a != 0 {
			t.Fatalf("after all: %d taken, %d and %d waiting", taken, d, a)
		}
	})
}

func TestFailedRequestFreesItsPlace(t *testing.T) {
	g := limit.NewGroup(1)
	b := g.Demand(sourcetest.FailNth(mem.New([]byte("x")), 1, nil))
	for _, want := range []error{sourcetest.ErrInjected, nil} {
		if _, err := sourcetest.Read(t.Context(), b, 0, 1); !errors.Is(err, want) {
			t.Fatalf("error %v, want %v", err, want)
		}
	}
}
