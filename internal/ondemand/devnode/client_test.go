package devnode

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/devnode"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

func TestClientErrorsAreTyped(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	if _, err := devnode.Dial(b.socket + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	c, err := devnode.Dial(b.socket)
	check(t, err)
	var refused *devnode.RefusedError
	if err := c.Bind(b.source, "t"); !errors.As(err, &refused) || refused.Command != "dir" || refused.Errno != syscall.EINVAL {
		t.Errorf("wrong directory: %v", err)
	}
	// The tag is given already, and that does not matter to who asks again
	// without.
	check(t, c.Bind(b.dir, ""))
	if err := c.Done(9); !errors.As(err, &refused) || refused.Command != "done 9" {
		t.Errorf("done: %v", err)
	}
	if _, err := c.File(9); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("file: %v", err)
	}
	second, err := devnode.Dial(b.socket)
	check(t, err)
	if err := second.Bind(b.dir, "t"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second daemon: %v", err)
	}
	if _, err := second.Next(t.Context()); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second daemon: %v", err)
	}
	check(t, second.Close())
	fill := b.miss(t, "blob", 0, 4096)
	req, err := c.Next(t.Context())
	check(t, err)
	check(t, c.Fail(req.ID, syscall.EDQUOT))
	if err := result(t, fill); ondemand.Errno(err) != syscall.EDQUOT {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	check(t, b.Close())
	if _, err := c.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the server's end: %v", err)
	}
	if err := c.Done(1); !errors.Is(err, io.EOF) {
		t.Errorf("after the server's end: %v", err)
	}
	check(t, c.Close())
	check(t, c.Close())
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}

func TestNoDescriptorIsLeft(t *testing.T) {
	round := func() {
		t.Run("round", func(t *testing.T) {
			b := serve(t, map[string]int{"a": 64 << 12, "b": 4096})
			for range 5 {
				c, err := devnode.Dial(b.socket)
				check(t, err)
				check(t, c.Bind(b.dir, "x"))
				second, err := devnode.Dial(b.socket)
				check(t, err)
				if second.Bind(b.dir, "y") == nil {
					t.Error("two daemons")
				}
				check(t, second.Close())
				var all sync.WaitGroup
				for i := range 8 {
					all.Go(func() {
						r := ondemand.Range{Off: int64(i) << 12, Len: 4096}
						if err := b.Fill(t.Context(), b.object(t, "a").ID(), r); ondemand.Errno(err) != syscall.EIO {
							t.Error(err)
						}
					})
				}
				for range 8 {
					req, err := c.Next(t.Context())
					check(t, err)
					f, err := c.File(req.ID)
					check(t, errors.Join(err, f.Close(), c.Fail(req.ID, 0)))
				}
				all.Wait()
				check(t, c.Close())
			}
		})
	}
	round()
	before := openFiles(t)
	for range 5 {
		round()
	}
	runtime.GC()
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
