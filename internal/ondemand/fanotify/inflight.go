package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Layout of the shared memory behind Inflight, native endian:
//
//	0      header: magic u64, version u32, slots u32, sequence u64, used u64
//	       (slots from this number on were never used)
//	4096   the buffer that events are read into
//	20480  slots, one for each descriptor number: slotSize bytes each
//
// A slot: state u32 (1: taken and not answered), pid u32, dev u64, ino u64,
// offset u64, count u64, flags u64 (1: the event had a range), since u64: when it
// was taken, in nanoseconds of CLOCK_MONOTONIC.
const (
	inflightMagic   = 0x31544c464e43414c // "LACNFLT1"
	inflightVersion = 1
	bufferAt        = 4096
	bufferSize      = 16 << 10
	slotsAt         = bufferAt + bufferSize
	slotSize        = 64
	slotTaken       = 1
	flagHasRange    = 1
)

// ErrInflightFormat tells of shared memory that another version of the program wrote.
var ErrInflightFormat = errors.New("in-flight table has an unknown format")

// Inflight is the table of events that were read and not answered, in memory
// that outlives the process: whoever holds the group after a crash finds here
// the descriptor number, the file and the range of each of them.
//
// Events are read straight into the shared buffer, so that an event which the
// process had no time to enter is still explained by it, but for its file.
type Inflight struct {
	fd    *sys.FD
	m     *sys.Mapping
	slots int
}

// NewInflight makes a table for descriptor numbers below slots.
func NewInflight(slots int) (*Inflight, error) {
	fd, err := sys.Memfd("lacuna-inflight", slotsAt+int64(slots)*slotSize)
	if err != nil {
		return nil, fmt.Errorf("make the in-flight table: %w", err)
	}
	m, err := sys.MapShared(fd)
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	ne := binary.NativeEndian
	ne.PutUint32(m.Bytes[8:], inflightVersion)
	ne.PutUint32(m.Bytes[12:], uint32(slots))
	ne.PutUint64(m.Bytes, inflightMagic)
	return &Inflight{fd: fd, m: m, slots: slots}, nil
}

// OpenInflight takes over the table behind fd, and fd with it.
func OpenInflight(fd *sys.FD) (*Inflight, error) {
	m, err := sys.MapShared(fd)
	if err != nil {
		return nil, fmt.Errorf("open the in-flight table: %w", err)
	}
	t := &Inflight{fd: fd, m: m}
	ne := binary.NativeEndian
	if len(m.Bytes) < slotsAt || ne.Uint64(m.Bytes) != inflightMagic || ne.Uint32(m.Bytes[8:]) != inflightVersion {
		return nil, errors.Join(ErrInflightFormat, m.Close())
	}
	t.slots = int(ne.Uint32(m.Bytes[12:]))
	if len(m.Bytes) < slotsAt+t.slots*slotSize {
		return nil, errors.Join(ErrInflightFormat, m.Close())
	}
	return t, nil
}

// FD is the descriptor of the shared memory, for the keeper.
func (t *Inflight) FD() *sys.FD { return t.fd }

// Slots is the number of descriptor numbers that the table has room for.
func (t *Inflight) Slots() int { return t.slots }

// Next returns a number that no process which shares this table has had or
// will have from it.
func (t *Inflight) Next() uint64 { return t.counter().Add(1) }

// Last is the number that Next returned last, 0 if none.
func (t *Inflight) Last() uint64 { return t.counter().Load() }

func (t *Inflight) counter() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&t.m.Bytes[16]))
}

// Close unmaps the table; the memory lives on with its other holders.
func (t *Inflight) Close() error { return errors.Join(t.m.Close(), t.fd.Close()) }

func (t *Inflight) used() *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&t.m.Bytes[24]))
}

// buffer is where events are read into. Its start is wiped before each read, so
// that after a crash it holds the events of the last read or none.
func (t *Inflight) buffer() []byte { return t.m.Bytes[bufferAt : bufferAt+bufferSize] }

func (t *Inflight) slot(number int) []byte {
	at := slotsAt + number*slotSize
	return t.m.Bytes[at : at+slotSize : at+slotSize]
}

func (t *Inflight) state(number int) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&t.slot(number)[0]))
}

// taken is one event that was read and is to be answered.
type taken struct {
	number int // descriptor number that the kernel knows it by
	pid    int
	inode  sys.Inode // zero where the file is not known
	event  sys.FanotifyEvent
	since  time.Duration // sys.Monotonic when it was taken
}

// enter records an event before anything waits for it.
func (t *Inflight) enter(e taken) {
	s, ne := t.slot(e.number), binary.NativeEndian
	ne.PutUint32(s[4:], uint32(e.pid))
	ne.PutUint64(s[8:], e.inode.Dev)
	ne.PutUint64(s[16:], e.inode.Ino)
	ne.PutUint64(s[24:], e.event.Offset)
	ne.PutUint64(s[32:], e.event.Count)
	flags := uint64(0)
	if e.event.HasRange {
		flags = flagHasRange
	}
	ne.PutUint64(s[40:], flags)
	ne.PutUint64(s[48:], uint64(e.since))
	// One thread enters events, so that load and store need no exchange.
	if used := t.used(); used.Load() <= uint64(e.number) {
		used.Store(uint64(e.number) + 1)
	}
	t.state(e.number).Store(slotTaken)
}

// leave forgets the event once it is answered and before its descriptor is
// closed, after which the number may come again.
func (t *Inflight) leave(number int) { t.state(number).Store(0) }

// outstanding returns the events that were taken and not answered when the
// last process that used the table ended.
func (t *Inflight) outstanding() []taken {
	var out []taken
	known := make(map[int]bool)
	for n := range int(min(uint64(t.slots), t.used().Load())) {
		if t.state(n).Load() != slotTaken {
			continue
		}
		s, ne := t.slot(n), binary.NativeEndian
		e := taken{
			number: n, pid: int(ne.Uint32(s[4:])),
			inode: sys.Inode{Dev: ne.Uint64(s[8:]), Ino: ne.Uint64(s[16:])},
		}
		e.event.Offset, e.event.Count = ne.Uint64(s[24:]), ne.Uint64(s[32:])
		e.event.HasRange = ne.Uint64(s[40:])&flagHasRange != 0
		e.since = time.Duration(ne.Uint64(s[48:]))
		known[n] = true
		out = append(out, e)
	}
	for buf := t.buffer(); len(buf) > 0; {
		ev, rest, err := sys.ParseFanotifyEvent(buf)
		if err != nil {
			break
		}
		buf = rest
		// The first occurrence of a number is the newest: what lies behind
		// the last read's events is older and was answered.
		if ev.FD >= 0 && ev.FD < t.slots && !known[ev.FD] {
			known[ev.FD] = true
			out = append(out, taken{number: ev.FD, pid: ev.PID, event: ev, since: sys.Monotonic()})
		}
	}
	return out
}

// extent is what of an object the event asks for: clipped, widened to blocks,
// the whole object where the event has no range record.
func extent(ev sys.FanotifyEvent, size int64) ondemand.Range {
	if !ev.HasRange {
		return ondemand.Range{Len: size}
	}
	return ondemand.Clip(ev.Offset, ev.Count, size).Blocks(size)
}
