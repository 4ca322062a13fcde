package cache

import (
	"errors"
	"fmt"
	"path"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// faultLife is the life of one object that the fault test repeats: made,
// filled, checkpointed, partly forgotten, filled again, closed,
// opened, completed, verified and removed. It returns the first error.
func faultLife(h *history) error {
	root, err := newRoot(h.disk, nil)
	if err != nil {
		return err
	}
	h.root = root
	o, err := root.Create(metaOf(0, h.sizes[0]))
	h.objects[0] = o
	if err != nil {
		return err
	}
	put := func(first, last int64) error {
		var p []byte
		for b := first; b < last; b++ {
			p = append(p, wantBlock(0, b, false)...)
		}
		return o.Fill(p[:min(int64(len(p)), o.size-first*block)], first*block)
	}
	total := ondemand.BlockCount(o.size)
	steps := []func() error{
		func() error { return put(0, 3) },
		func() error { return put(total-4, total) },
		o.Checkpoint,
		func() error { return o.Invalidate(ondemand.Range{Off: block, Len: 1}) },
		func() error { return put(1, 4) },
		o.Close,
		func() (err error) {
			o, err = root.Object(idOf(0))
			h.objects[0] = o
			return err
		},
		func() error {
			for _, m := range o.Missing(ondemand.Range{Len: o.size}) {
				if err := put(m.Off/block, ondemand.BlockCount(m.End())); err != nil {
					return err
				}
			}
			return nil
		},
		func() error { return o.SetVerified() },
		root.Close,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// Every operation of the disk fails once, each in its own life, in every way.
// Whatever failed, what is claimed is right, at once, after a restart and after
// a power cut, and afterwards the object can be used.
func TestEveryOperationFailsOnce(t *testing.T) {
	seed := firstSeed(t)
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC, errShort} {
		t.Run(fault.Error(), func(t *testing.T) {
			for n := 1; ; n++ {
				h := newHistory(seed + uint64(n))
				h.sizes, h.objects = []int64{30*block + 9}, []*Object{nil}
				failed, err := h.faultAt(n, fault)
				if err != nil {
					t.Fatalf("operation %d (seed %d): %v", n, seed, err)
				}
				if !failed {
					t.Logf("%d operations", n-1)
					if n < 50 {
						t.Error("too few to be all")
					}
					return
				}
			}
		})
	}
}

// faultAt lives a life in which operation n fails, and checks what is left.
func (h *history) faultAt(n int, fault error) (failed bool, err error) {
	count := 0
	h.disk.fail = func(op, name string) error {
		if count++; count != n {
			return nil
		}
		failed = true
		if errors.Is(fault, errShort) && op != "write" {
			return syscall.EIO
		}
		return fault
	}
	err = faultLife(h)
	h.disk.fail = nil
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) && !errors.Is(fault, errShort) {
		return failed, fmt.Errorf("the error hides its cause: %w", err)
	}
	if err != nil && !failed {
		return failed, err
	}
	if h.objects[0] != nil && !h.objects[0].isClosed() {
		if err := h.verify(0); err != nil {
			return failed, fmt.Errorf("at once: %w", err)
		}
	}
	if h.root != nil {
		if err := h.root.Close(); err != nil {
			return failed, fmt.Errorf("close without faults: %w", err)
		}
	}
	if n%2 == 0 {
		h.disk.crash()
	}
	if err := h.open(); err != nil {
		return failed, fmt.Errorf("afterwards: %w", err)
	}
	if err := h.root.Close(); err != nil {
		return failed, err
	}
	if err := faultLife(h); err != nil {
		return failed, fmt.Errorf("a life without faults: %w", err)
	}
	return failed, nil
}

// Places that cannot be read when the object is opened do not come back with
// what was forgotten meanwhile.
func TestUnreadablePlacesDoNotComeBack(t *testing.T) {
	d := newSimDisk(firstSeed(t))
	r, err := newRoot(d, nil)
	must(t, err)
	m := metaOf(0, 10*block)
	o := mustCreate(t, r, m)
	must(t, o.Fill(wantBlock(0, 0, true), 0))
	must(t, o.Checkpoint())
	must(t, r.Close())
	reads := 0
	d.fail = func(op, name string) error {
		if op == "read" && path.Base(name) == presenceName {
			if reads++; reads > 1 { // the header can be read
				return syscall.EIO
			}
		}
		return nil
	}
	r, err = newRoot(d, nil)
	must(t, err)
	o = mustCreate(t, r, m)
	d.fail = nil
	if len(o.Recovered().BadSlots) != 2 || o.Present() != 0 {
		t.Fatalf("recovered %+v, %d present", o.Recovered(), o.Present())
	}
	must(t, o.Invalidate(ondemand.Range{Len: block}))
	r.saver.close()
	d.crash()
	r, err = newRoot(d, nil)
	must(t, err)
	if o = mustCreate(t, r, m); o.Present() != 0 {
		t.Errorf("%d bytes came back", o.Present())
	}
	must(t, r.Close())
}
