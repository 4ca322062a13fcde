package cache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// syncsOf counts syncs of the files with this name.
func syncsOf(d *simDisk, name string) *atomic.Int32 {
	n := new(atomic.Int32)
	d.fail = func(op, path string) error {
		if op == "sync" && filepath.Base(path) == name {
			n.Add(1)
		}
		return nil
	}
	return n
}

func TestCheckpointComesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSimDisk(1)
		r, err := newRoot(d, nil)
		must(t, err)
		o := mustCreate(t, r, metaOf(1, 1<<30))
		syncs := syncsOf(d, dataName)
		data := content(1, 1<<20)
		must(t, o.Fill(data[:block], 0))
		time.Sleep(checkpointAge - time.Second)
		must(t, o.Fill(data[:block], block))
		if syncs.Load() != 0 {
			t.Errorf("%d checkpoints before %v", syncs.Load(), checkpointAge)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if syncs.Load() != 1 {
			t.Errorf("%d checkpoints after %v", syncs.Load(), checkpointAge)
		}
		time.Sleep(10 * checkpointAge)
		synctest.Wait()
		if syncs.Load() != 1 {
			t.Errorf("%d checkpoints with nothing filled", syncs.Load())
		}
		for off := int64(0); off < checkpointBytes; off += 1 << 20 {
			must(t, o.Fill(data, 1<<20+off))
		}
		synctest.Wait()
		if syncs.Load() != 2 {
			t.Errorf("%d checkpoints after %d bytes", syncs.Load(), checkpointBytes)
		}
		must(t, r.Close())
	})
}

// A sync of the data that fails takes back all since the last good one, and is
// told; a sync of presence that fails takes nothing back and is tried again.
func TestFailedSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newSimDisk(1)
		var told []error
		r, err := newRoot(d, func(_ ondemand.ObjectID, err error) { told = append(told, err) })
		must(t, err)
		o := mustCreate(t, r, metaOf(1, 100*block))
		data := content(1, 100*block)
		mustFill(t, o, data, ondemand.Range{Len: 10 * block})
		must(t, o.Checkpoint())
		var failing atomic.Value // the name of the file whose next sync fails
		failing.Store("")
		d.fail = func(op, path string) error {
			if op == "sync" && filepath.Base(path) == failing.Load() {
				failing.Store("")
				return syscall.EIO
			}
			return nil
		}
		mustFill(t, o, data, ondemand.Range{Off: 10 * block, Len: 10 * block})
		failing.Store(dataName)
		time.Sleep(checkpointAge)
		synctest.Wait()
		if o.Present() != 10*block || len(told) != 1 || !errors.Is(told[0], syscall.EIO) {
			t.Errorf("after a failed sync of data: %d present, told %v", o.Present(), told)
		}
		mustFill(t, o, data, ondemand.Range{Off: 10 * block, Len: 10 * block})
		failing.Store(presenceName)
		time.Sleep(checkpointAge)
		synctest.Wait()
		if o.Present() != 20*block || len(told) != 2 {
			t.Errorf("after a failed sync of presence: %d present, told %v", o.Present(), told)
		}
		time.Sleep(checkpointAge)
		synctest.Wait()
		r.saver.close()
		d.crash()
		r, err = newRoot(d, nil)
		must(t, err)
		o = mustCreate(t, r, metaOf(1, 100*block))
		if o.Present() != 20*block {
			t.Errorf("after a crash: %d present", o.Present())
		}
		// The fill that completes the object fails with the sync.
		failing.Store(dataName)
		if err := o.Fill(data[20*block:], 20*block); !errors.Is(err, syscall.EIO) || o.Complete() || o.Present() != 20*block {
			t.Errorf("last fill: %v, complete %v, %d present", err, o.Complete(), o.Present())
		}
		mustFill(t, o, data, ondemand.Range{Off: 20 * block, Len: 80 * block})
		if !o.Complete() {
			t.Error("not complete")
		}
		// What is forgotten in memory and not on disk is not filled.
		failing.Store(presenceName)
		if err := o.Invalidate(ondemand.Range{Len: block}); !errors.Is(err, syscall.EIO) || o.Complete() {
			t.Errorf("invalidate: %v", err)
		}
		failing.Store(presenceName)
		if err := o.Fill(data[:block], 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("fill before disk forgot: %v", err)
		}
		mustFill(t, o, data, ondemand.Range{Len: block})
		must(t, r.Close())
	})
}

// Fills, reads, checkpoints and invalidations at once, on real files.
func TestConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	const blocks = 300
	data := content(5, blocks*block-9)
	o := mustCreate(t, r, metaOf(5, int64(len(data))))
	var wg sync.WaitGroup
	span := func(rng *rand.Rand) ondemand.Range {
		off := rng.Int64N(blocks) * block
		return ondemand.Range{Off: off, Len: min(1+rng.Int64N(8*block), o.Size()-off)}.Blocks(o.Size())
	}
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 9))
			got := make([]byte, 9*block)
			for range 300 {
				s := span(rng)
				if err := o.Fill(data[s.Off:s.End()], s.Off); err != nil {
					t.Error(err)
				}
				if s = span(rng); !o.Has(s) {
					continue
				}
				if _, err := o.File().ReadAt(got[:s.Len], s.Off); err != nil || !bytes.Equal(got[:s.Len], data[s.Off:s.End()]) {
					t.Errorf("%v is present and wrong: %v", s, err)
				}
			}
		})
	}
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(99, 9))
		for range 10 {
			if err := errors.Join(o.Checkpoint(), o.Invalidate(span(rng))); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	present := o.Present()
	must(t, r.Close())
	r = openTestRoot(t, dir)
	o = mustCreate(t, r, metaOf(5, int64(len(data))))
	if o.Present() != present {
		t.Errorf("%d present after reopening, %d before", o.Present(), present)
	}
	verifyPresent(t, o, data)
}

// openFiles is how many descriptors this process has.
func openFiles(t testing.TB) int {
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(names)
}

func TestDescriptorsAreGivenBack(t *testing.T) {
	before := openFiles(t)
	dir := t.TempDir()
	for range 3 {
		r := openTestRoot(t, dir)
		for n := range 20 {
			mustCreate(t, r, metaOf(n, 10*block))
		}
		must(t, r.Remove(idOf(3)))
		must(t, r.Close())
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// A machine that dies between the two writes of a forget must not find the
// forgotten claim in the older place later.
func TestForgetGoesOnAfterACrash(t *testing.T) {
	dir := t.TempDir()
	size := int64(9 * block)
	m := metaOf(1, size)
	r := openTestRoot(t, dir)
	o := mustCreate(t, r, m)
	mustFill(t, o, content(1, int(size)), ondemand.Range{Len: 5 * block})
	must(t, o.Checkpoint())
	path := filepath.Join(dir, objectDir(m.ID), presenceName)
	before, err := os.ReadFile(path)
	must(t, err)
	must(t, o.Invalidate(ondemand.Range{Off: 3 * block, Len: block}))
	must(t, r.Close())
	place := func(b []byte, which int) []byte { return b[slotOffset(0, which):][:slotSize] }
	rewrite(t, path, func(b []byte) []byte {
		copy(place(b, 0), place(before, 0)) // the second write never happened
		return b
	})
	for damaged := range 2 {
		r = openTestRoot(t, dir)
		o = mustCreate(t, r, m)
		if o.Present() != 4*block || o.Has(ondemand.Range{Off: 3 * block, Len: block}) {
			t.Errorf("place %d: %d present", damaged, o.Present())
		}
		must(t, r.Close())
		rewrite(t, path, func(b []byte) []byte { place(b, 1-damaged)[100] ^= 1; return b })
	}
	r = openTestRoot(t, dir)
	if o = mustCreate(t, r, m); o.Has(ondemand.Range{Off: 3 * block, Len: block}) {
		t.Error("a forgotten block is claimed again")
	}
}
