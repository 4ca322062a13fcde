package fetch

import (
	"math"
	"math/bits"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

const (
	headCount   = 16 // sequential readers followed at once
	recentCount = 32 // misses remembered to recognise one that goes on
	headSlack   = 64 << 10
	firstWindow = 256 << 10
	startWindow = 1 << 20 // the largest first window
	maxWindow   = 32 << 20
	idleLimit   = 32 // misses elsewhere before a head that is not read collapses

	never = math.MaxInt64
)

// head follows one sequential reader. Its window ends at hi: so far data was
// asked for ahead of the reader. A read across trigger asks for the next one.
type head struct {
	lo, hi, trigger atomic.Int64
	touched         atomic.Bool // read since the last miss elsewhere

	// The rest is guarded by Object.mu.
	serial uint64 // names this use of the head; streams refer to it
	window int64  // length of the newest window
	idle   int    // misses elsewhere since it was touched
}

// heads are the sequential readers of one object, and the misses from which
// one is recognised. seen takes no lock, everything else is called with
// Object.mu held. No method does anything but arithmetic.
type heads struct {
	live   atomic.Uint32 // bit i: all[i] is in use
	all    [headCount]head
	recent [recentCount]ondemand.Range
	oldest int
	serial uint64
}

// advice is what heads want fetched: ahead, on account of all[head], whose
// serial is given; head is -1 where they want nothing. Whoever gets an advice
// with a head answers with granted. dropped are the serials of heads that
// collapsed.
type advice struct {
	head    int
	serial  uint64
	ahead   ondemand.Range
	dropped []uint64
}

// seen notes that r is read and returns the head whose trigger it crosses, or
// -1. Whoever gets a head calls cross with it.
func (hs *heads) seen(r ondemand.Range) int {
	for live := hs.live.Load(); live != 0; live &= live - 1 {
		i := bits.TrailingZeros32(live)
		h := &hs.all[i]
		if r.End() <= h.lo.Load() || r.Off >= h.hi.Load() {
			continue
		}
		if !h.touched.Load() {
			h.touched.Store(true)
		}
		t := h.trigger.Load()
		if r.End() > t && r.Off <= t+headSlack && h.trigger.CompareAndSwap(t, never) {
			return i
		}
	}
	return -1
}

// miss notes that what begins at off is read and was not all present, for which r is
// fetched. Whoever goes on reads where that ends: another piece beside it, of a source
// whose pieces are large, may be anybody's.
func (hs *heads) miss(off int64, r ondemand.Range, size int64) advice {
	a := advice{head: -1}
	for live := hs.live.Load(); live != 0; live &= live - 1 {
		i := bits.TrailingZeros32(live)
		h := &hs.all[i]
		switch {
		case a.head < 0 && off >= h.lo.Load() && off <= h.hi.Load()+headSlack:
			a.head = i
			h.idle = 0
		case h.touched.Swap(false):
			h.idle = 0
		default:
			if h.idle++; h.idle > idleLimit {
				a.dropped = append(a.dropped, h.serial)
				hs.collapse(i)
			}
		}
	}
	if a.head >= 0 {
		h := &hs.all[a.head]
		hi := h.hi.Load()
		if r.End() <= min(h.trigger.Load(), hi) {
			a.head = -1 // what is ahead is enough
			return a
		}
		h.trigger.Store(never)
		a.serial, a.ahead = h.serial, next(max(hi, r.End()), h.grown(), size)
		return a
	}
	i := hs.recognise(off, r)
	if i < 0 {
		return a
	}
	if hs.live.Load()&(1<<i) != 0 {
		a.dropped = append(a.dropped, hs.all[i].serial)
	}
	a.head, a.serial = i, hs.follow(i, r)
	a.ahead = next(r.End(), min(max(4*r.Len, firstWindow), startWindow), size)
	return a
}

// grown is the length of the window after the newest.
func (h *head) grown() int64 { return min(max(2*h.window, firstWindow), maxWindow) }

func next(off, window, size int64) ondemand.Range {
	return ondemand.Range{Off: off, Len: max(min(window, size-off), 0)}
}

// recognise looks whether off goes on where a recent miss stopped. If so it
// returns a head for the reader, or -1 when all are followed by readers that
// are busier; if not it remembers r.
func (hs *heads) recognise(off int64, r ondemand.Range) int {
	for i, m := range hs.recent {
		if m.Empty() || off < m.Off || off > m.End()+headSlack || r.End() <= m.End() {
			continue
		}
		hs.recent[i] = r
		free, most := -1, idleLimit/2
		live := hs.live.Load()
		for k := range hs.all {
			if live&(1<<k) == 0 {
				return k
			}
			if hs.all[k].idle > most {
				free, most = k, hs.all[k].idle
			}
		}
		return free
	}
	hs.recent[hs.oldest] = r
	hs.oldest = (hs.oldest + 1) % recentCount
	return -1
}

// cross returns the window that the reader who crossed head i's trigger is to
// get next.
func (hs *heads) cross(i int, size int64) advice {
	h := &hs.all[i]
	if hs.live.Load()&(1<<i) == 0 || h.trigger.Load() != never {
		return advice{head: -1} // collapsed, or moved on by a miss
	}
	return advice{head: i, serial: h.serial, ahead: next(h.hi.Load(), h.grown(), size)}
}

// follow begins to use all[i] for the reader of r, and returns the serial.
func (hs *heads) follow(i int, r ondemand.Range) uint64 {
	h := &hs.all[i]
	hs.serial++
	h.serial, h.window, h.idle = hs.serial, 0, 0
	h.touched.Store(true)
	h.lo.Store(r.Off)
	h.hi.Store(r.End())
	h.trigger.Store(never)
	hs.live.Or(1 << i)
	return h.serial
}

// granted records that data up to end was asked for on account of a, less than
// a.ahead where the gates were closed.
func (hs *heads) granted(a advice, end, size int64) {
	h := &hs.all[a.head]
	if end <= a.ahead.Off {
		// Nothing to be had now, or nothing left; a read of the window's
		// last part, or a miss behind it, tries again.
		h.hi.Store(a.ahead.Off)
		h.trigger.Store(max(a.ahead.Off-headSlack, h.lo.Load()))
		if a.ahead.Off >= size {
			h.trigger.Store(never)
		}
		return
	}
	last := h.window
	h.window = end - a.ahead.Off
	h.lo.Store(max(h.lo.Load(), a.ahead.Off-last-headSlack))
	h.hi.Store(end)
	if end >= size {
		h.trigger.Store(never)
		return
	}
	h.trigger.Store(a.ahead.Off + h.window/2)
}

// collapseSerial collapses the head of that serial if it is in use still.
func (hs *heads) collapseSerial(serial uint64) {
	for live := hs.live.Load(); live != 0; live &= live - 1 {
		if i := bits.TrailingZeros32(live); hs.all[i].serial == serial {
			hs.collapse(i)
		}
	}
}

// windows are the lengths of the newest windows of the heads in use.
func (hs *heads) windows() []int64 {
	var out []int64
	for live := hs.live.Load(); live != 0; live &= live - 1 {
		out = append(out, hs.all[bits.TrailingZeros32(live)].window)
	}
	return out
}

// collapse forgets head i: its reader is gone, or its window failed.
func (hs *heads) collapse(i int) {
	hs.live.And(^uint32(1 << i))
	hs.all[i].trigger.Store(never)
}
