package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

var (
	crashSeed = flag.Uint64("seed", 0, "seed of the first crash history; 0 takes one from the clock")
	crashN    = flag.Int("crash.n", crashHistories, "number of crash histories")
)

// wantBlock is the right content of a block: every sector differs from every
// other one of every object, and from that of a wrong one.
func wantBlock(object int, n int64, wrong bool) []byte {
	b := make([]byte, block)
	for i := 0; i < block; i += 32 {
		binary.LittleEndian.PutUint64(b[i:], uint64(object)+1)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(n)+1)
		binary.LittleEndian.PutUint64(b[i+16:], uint64(i/sector)+1)
		if wrong {
			b[i+24] = 1
		}
	}
	return b
}

// errWrongBytes is what must never happen.
var errWrongBytes = errors.New("claimed, and has other bytes")

// history is one random life of a cache root on a simulated disk, and what
// must hold of it.
type history struct {
	rng     *rand.Rand
	disk    *simDisk
	root    *Root
	sizes   []int64
	objects []*Object
	// kept are blocks that a checkpoint has reported durable and nothing
	// but damage may take back; wrong ones were filled with wrong bytes and
	// not yet forgotten.
	kept, wrong []map[int64]bool
	// rotten objects promise nothing until they are opened again.
	rotten []bool
	log    []string
}

func newHistory(seed uint64) *history {
	h := &history{rng: rand.New(rand.NewPCG(seed, 2)), disk: newSimDisk(seed)}
	for range 1 + h.rng.IntN(2) {
		sizes := []int64{1, block, 20*block + 5, pageBytes + 3*block, 2*pageBytes + 77}
		h.sizes = append(h.sizes, sizes[h.rng.IntN(len(sizes))])
		h.kept, h.wrong = append(h.kept, map[int64]bool{}), append(h.wrong, map[int64]bool{})
		h.objects, h.rotten = append(h.objects, nil), append(h.rotten, false)
	}
	return h
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// open opens the root and its objects, and checks what they claim. Without
// faults nothing of it may fail.
func (h *history) open() error {
	var err error
	if h.root, err = newRoot(h.disk, nil); err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	for i, size := range h.sizes {
		if h.objects[i], err = h.root.Create(metaOf(i, size)); err != nil {
			return fmt.Errorf("open object %d: %w", i, err)
		}
		if err := h.verify(i); err != nil {
			return err
		}
		h.rotten[i] = false
		// Wrong bytes that were not forgotten in time are forgotten now.
		for b := range h.wrong[i] {
			if err := h.objects[i].Invalidate(ondemand.Range{Off: b * block, Len: 1}); err != nil {
				return fmt.Errorf("invalidate: %w", err)
			}
			delete(h.wrong[i], b)
			delete(h.kept[i], b)
		}
	}
	return nil
}

// verify compares every block that is claimed with what it must be, and looks
// for blocks that must be claimed.
func (h *history) verify(i int) error {
	o := h.objects[i]
	if o.Size() != h.sizes[i] {
		return fmt.Errorf("object %d has %d bytes", i, o.Size())
	}
	for _, r := range o.presence.Present(ondemand.Range{Len: o.size}) {
		for off := r.Off; off < r.End(); off += block {
			want := wantBlock(i, off/block, false)[:min(block, o.size-off)]
			got := make([]byte, len(want))
			if _, err := o.data.ReadAt(got, off); err != nil {
				return fmt.Errorf("object %d: read claimed block %d: %w", i, off/block, err)
			}
			if !bytes.Equal(got, want) && !h.wrong[i][off/block] {
				return fmt.Errorf("object %d: block %d: %w", i, off/block, errWrongBytes)
			}
		}
	}
	for b := range h.kept[i] {
		if !o.Has(ondemand.Range{Off: b * block, Len: 1}) {
			return fmt.Errorf("object %d: block %d was durable and is missing", i, b)
		}
	}
	if o.Complete() && o.Present() != o.size {
		return fmt.Errorf("object %d: complete with %d of %d bytes", i, o.Present(), o.size)
	}
	return nil
}

// randomRange is some blocks of object i, often near the edges of pages.
func (h *history) randomRange(i int) (first, last int64) {
	total := ondemand.BlockCount(h.sizes[i])
	switch first = h.rng.Int64N(total); h.rng.IntN(4) {
	case 0:
		first = 0
	case 1:
		first = max(total-1-h.rng.Int64N(4), 0)
	case 2:
		first = min(max(pageBlocks-h.rng.Int64N(6), 0), total-1)
	}
	return first, min(first+1+h.rng.Int64N(12), total)
}

func (h *history) fill(i int, wrong bool) {
	o := h.objects[i]
	first, last := h.randomRange(i)
	var p []byte
	var mended []int64
	for b := first; b < last; b++ {
		p = append(p, wantBlock(i, b, wrong)...)
		if has := o.Has(ondemand.Range{Off: b * block, Len: 1}); !wrong && !has {
			mended = append(mended, b)
		} else if wrong && !has {
			h.wrong[i][b] = true
		}
	}
	p = p[:min(int64(len(p)), o.size-first*block)]
	err := o.Fill(p, first*block)
	h.note("fill %d [%d,%d) wrong=%v: %v", i, first, last, wrong, err)
	for _, b := range mended {
		if err == nil { // disk had to forget the block before it was filled
			delete(h.wrong[i], b)
		}
	}
}

func (h *history) invalidate(i int) {
	first, last := h.randomRange(i)
	for b := range h.wrong[i] { // mostly something that needs it
		first, last = b, b+1
	}
	for b := first; b < last; b++ {
		delete(h.kept[i], b)
	}
	err := h.objects[i].Invalidate(ondemand.Range{Off: first * block, Len: (last - first) * block})
	h.note("invalidate %d [%d,%d): %v", i, first, last, err)
	if err == nil {
		for b := first; b < last; b++ {
			delete(h.wrong[i], b)
		}
	}
}

func (h *history) checkpoint(i int) {
	err := h.objects[i].Checkpoint()
	h.note("checkpoint %d: %v", i, err)
	if err != nil || h.rotten[i] {
		return
	}
	for _, r := range h.objects[i].presence.Present(ondemand.Range{Len: h.sizes[i]}) {
		for b := r.Off / block; b*block < r.End(); b++ {
			h.kept[i][b] = true
		}
	}
}

// rot damages a place of a presence file for good.
func (h *history) rot(i int) {
	n := h.disk.walk(objectDir(idOf(i)) + "/" + presenceName)
	page, which := h.rng.Int64N(pageCount(h.sizes[i])), h.rng.IntN(2)
	w := simWrite{off: slotOffset(page, which) + h.rng.Int64N(8)*sector, p: bytes.Repeat([]byte{0xa5}, sector)}
	n.apply(seen, w)
	n.apply(onDisk, w)
	h.note("rot %d page %d slot %d", i, page, which)
	clear(h.kept[i])
	h.rotten[i] = true
}

// restart opens the root again: closed, after kill -9, or after a power cut.
func (h *history) restart() error {
	how := h.rng.IntN(3)
	h.note("restart %d", how)
	switch how {
	case 0:
		h.disk.fail = nil
		if err := h.root.Close(); err != nil {
			return err
		}
	case 1:
		h.disk.life++
		h.root.saver.close()
	case 2:
		h.disk.crash()
		h.root.saver.close()
	}
	h.disk.fail = nil
	return h.open()
}

// trouble makes the next operations of the disk fail now and then.
func (h *history) trouble() {
	left, every := 1+h.rng.IntN(3), 1+h.rng.IntN(6)
	errs := []error{syscall.EIO, syscall.ENOSPC, errShort}
	h.note("trouble: %d failures, one in %d", left, every)
	h.disk.fail = func(op, _ string) error {
		if left == 0 || h.disk.rng.IntN(every) != 0 {
			return nil
		}
		left--
		err := errs[h.disk.rng.IntN(len(errs))]
		if errors.Is(err, errShort) && op != "write" {
			err = syscall.EIO
		}
		return err
	}
}

func (h *history) run(steps int) error {
	if err := h.open(); err != nil {
		return err
	}
	defer func() { h.root.saver.close() }()
	for range steps {
		i := h.rng.IntN(len(h.objects))
		switch n := h.rng.IntN(100); {
		case n < 45:
			h.fill(i, false)
		case n < 50:
			h.fill(i, true)
		case n < 60:
			h.invalidate(i)
		case n < 75:
			h.checkpoint(i)
		case n < 78:
			h.rot(i)
		case n < 88:
			h.trouble()
		default:
			if err := h.restart(); err != nil {
				return err
			}
		}
		fail := h.disk.fail
		h.disk.fail = nil
		if err := h.verify(i); err != nil {
			return err
		}
		h.disk.fail = fail
	}
	return h.restart()
}

// firstSeed prints where a run of histories begins.
func firstSeed(t *testing.T) uint64 {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("first seed %d", seed)
	return seed
}

func TestMachineCrash(t *testing.T) {
	seed := firstSeed(t)
	for n := range uint64(*crashN) {
		h := newHistory(seed + n)
		if err := h.run(40); err != nil {
			for _, line := range h.log {
				t.Log(line)
			}
			t.Fatalf("history %d (go test -run TestMachineCrash -seed %d -crash.n 1): %v", n, seed+n, err)
		}
	}
}

// The histories notice a disk that lies about syncs: their silence means something.
func TestMachineCrashNoticesLyingDisk(t *testing.T) {
	seed := firstSeed(t)
	for _, c := range []struct {
		ignore string // whose syncs do nothing
		wrong  bool   // wrong bytes must be noticed, not only missing ones
	}{{dataName, true}, {presenceName, true}, {"directories", false}} {
		t.Run(c.ignore, func(t *testing.T) {
			for n := range uint64(5000) {
				h := newHistory(seed + n)
				h.disk.ignoreSync = c.ignore
				err := h.run(40)
				if err != nil && (!c.wrong || errors.Is(err, errWrongBytes)) {
					t.Logf("history %d: %v", n, err)
					return
				}
			}
			t.Error("5000 histories without a sync, and nothing noticed")
		})
	}
}
