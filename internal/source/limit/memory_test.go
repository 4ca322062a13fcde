package limit_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/source/limit"
)

// taking is a Take of n bytes that runs.
func taking(h *limit.Held, n int64) <-chan error {
	took := make(chan error, 1)
	go func() { took <- h.Take(n) }()
	synctest.Wait()
	return took
}

func waits(t *testing.T, took <-chan error) {
	t.Helper()
	select {
	case err := <-took:
		t.Errorf("a Take that should wait ends: %v", err)
	default:
	}
}

func take(t *testing.T, h *limit.Held, n int64) {
	t.Helper()
	if err := h.Take(n); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryIsSharedAndGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := limit.NewMemory(10)
		a, b := m.Hold(t.Context()), m.Hold(t.Context())
		take(t, a, 6)
		took := taking(b, 5)
		waits(t, took)
		take(t, a, 5) // what was held before does not count
		if err := <-took; err != nil {
			t.Error(err)
		}
		c := m.Hold(t.Context())
		took = taking(c, 10)
		a.Drop()
		a.Drop()
		synctest.Wait()
		waits(t, took)
		b.Close()
		b.Close()
		if err := <-took; err != nil {
			t.Error(err)
		}
		a.Close()
		c.Close()
		take(t, m.Hold(t.Context()), 10)
	})
}

func TestWaitForMemoryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := limit.NewMemory(10)
		a := m.Hold(t.Context())
		take(t, a, 10)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b, c := m.Hold(ctx), m.Hold(t.Context())
		waitsB, waitsC := taking(b, 1), taking(c, 1)
		cancel()
		if err := <-waitsB; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		c.Close()
		if err := <-waitsC; !errors.Is(err, os.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		a.Close()
		for _, h := range []*limit.Held{a, c} {
			if err := h.Take(1); !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		b.Close()
		take(t, m.Hold(t.Context()), 10)
	})
}
