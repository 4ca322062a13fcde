package fetch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// readied is a blob with an index that the test lets come.
type readied struct {
	source.Blob
	index chan error
}

func (r *readied) Ready(ctx context.Context, _, _ int64) error {
	select {
	case err := <-r.index:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newReadied(t *testing.T) (*rig, *readied) {
	t.Helper()
	var r *readied
	g := newRigOn(t, 1*mib, func(g *rig, _ *Options) { g.blob.free = true }, func(g *rig) source.Blob {
		r = &readied{g.blob, make(chan error, 1)}
		return r
	})
	return g, r
}

// A reader that waits for a blob's index holds nobody else up, and gets its error.
func TestReaderWaitsForTheIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, blob := newReadied(t)
		first, second := g.start(0, 1), g.start(500*kib, 1)
		first.sleeps()
		second.sleeps()
		if n := len(g.blob.asked); n > 0 {
			t.Fatalf("%d requests before the index is there", n)
		}
		if !g.object.mu.TryLock() {
			t.Fatal("the object is locked while the index comes")
		}
		g.object.mu.Unlock()
		blob.index <- source.ErrDenied
		blob.index <- nil
		synctest.Wait()
		errs := []error{first.ended(), second.ended()}
		if errs[0] == nil {
			errs[0], errs[1] = errs[1], errs[0]
		}
		if !errors.Is(errs[0], ondemand.ErrDenied) || errs[1] != nil {
			t.Errorf("readers got %v", errs)
		}
		g.settled(t)
	})
}

// Removing an object ends readers that wait for its index.
func TestRemoveWhileTheIndexComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newReadied(t)
		f := g.start(0, 1)
		f.sleeps()
		g.Remove(testID)
		if err := f.ended(); !errors.Is(err, ondemand.ErrDetached) {
			t.Errorf("reader got %v", err)
		}
	})
}
