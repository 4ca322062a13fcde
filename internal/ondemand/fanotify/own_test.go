package fanotify

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

// filledHere is an object that says what is being written of it.
type filledHere struct {
	*ondemandtest.Object
	now atomic.Pointer[ondemand.Range]
}

func (o *filledHere) Filling(r ondemand.Range) bool {
	now := o.now.Load()
	return now != nil && now.Contains(r)
}

// A read of our own that is let through to a hole finds zeros, and leaves them in
// the page cache of whatever filesystem it came by.
func TestOwnReadsOfHolesAreRefused(t *testing.T) {
	o := &filledHere{Object: objects(t, 1, 1<<20)[0]}
	fill := lateWriter(o.Object)
	in := prepare(t, Options{Table: newTable(ondemandtest.FillFunc(
		func(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
			o.now.Store(&r)
			defer o.now.Store(nil)
			return fill(ctx, id, r)
		}))}).serve()
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := in.fe.Attach(o, o.Path, nobody); err != nil {
		t.Fatal(err)
	}
	own, err := os.Open(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	p := make([]byte, 4096)
	if n, err := own.ReadAt(p, 8192); !errors.Is(err, syscall.EIO) {
		t.Errorf("own read of a hole: %d bytes, %v", n, err)
	}
	r := ondemand.Range{Off: 8192, Len: 4096}
	gives(t, ondemandtest.StartReader(t).Read(o.Path, r.Off, int(r.Len)), o.Object, r)
	if n, err := own.ReadAt(p, 8192); err != nil || n != len(p) {
		t.Errorf("own read of what is present: %d bytes, %v", n, err)
	}
}
