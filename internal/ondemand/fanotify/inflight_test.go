package fanotify

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

func newInflight(t testing.TB, slots int) *Inflight {
	t.Helper()
	flight, err := NewInflight(slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := flight.Close(); err != nil {
			t.Error(err)
		}
	})
	return flight
}

func TestInflightIsSeenByTheNextProcess(t *testing.T) {
	flight := newInflight(t, 100)
	want := taken{number: 42, pid: 7, inode: sys.Inode{Dev: 1 << 40, Ino: 9}, since: 5 * time.Second}
	want.event.Offset, want.event.Count, want.event.HasRange = 1<<63, 4096, true
	for _, n := range []int{99, 42, 0} {
		e := want
		e.number = n
		flight.enter(e)
	}
	flight.leave(99)
	if a, b := flight.Next(), flight.Next(); a != 1 || b != 2 {
		t.Errorf("numbers %d, %d", a, b)
	}
	dup, err := flight.FD().Dup()
	if err != nil {
		t.Fatal(err)
	}
	next, err := OpenInflight(dup)
	if err != nil {
		t.Fatal(err)
	}
	out := next.outstanding()
	if len(out) != 2 || out[0].number != 0 || out[1] != want {
		t.Errorf("got %+v, want %+v second", out, want)
	}
	if next.Slots() != 100 || next.Last() != 2 || next.Next() != 3 || flight.Last() != 3 {
		t.Errorf("%d slots, numbers up to %d", next.Slots(), flight.Last())
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

func TestInflightOfAnotherFormatIsRefused(t *testing.T) {
	ne := binary.NativeEndian
	for name, spoil := range map[string]func(b []byte) (size int64){
		"magic":      func(b []byte) int64 { b[3] ^= 1; return 0 },
		"version":    func(b []byte) int64 { ne.PutUint32(b[8:], inflightVersion+1); return 0 },
		"more slots": func(b []byte) int64 { ne.PutUint32(b[12:], 101); return 0 },
		"all slots":  func(b []byte) int64 { ne.PutUint32(b[12:], 1<<32-1); return 0 },
		"short":      func([]byte) int64 { return slotsAt + 99*slotSize },
		"shorter":    func([]byte) int64 { return bufferAt },
		"tiny":       func([]byte) int64 { return 10 },
	} {
		t.Run(name, func(t *testing.T) {
			flight := newInflight(t, 100)
			size := spoil(flight.m.Bytes)
			if size == 0 {
				size = int64(len(flight.m.Bytes))
			}
			fd, err := sys.Memfd("spoilt", size)
			if err != nil {
				t.Fatal(err)
			}
			m, err := sys.MapShared(fd)
			if err != nil {
				t.Fatal(err)
			}
			copy(m.Bytes, flight.m.Bytes)
			if _, err := OpenInflight(fd); !errors.Is(err, ErrInflightFormat) {
				t.Errorf("got %v", err)
			}
			if err := errors.Join(m.Close(), fd.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	empty, err := sys.Memfd("empty", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInflight(empty); err == nil {
		t.Error("an empty file was taken")
	}
	if err := empty.Close(); err != nil {
		t.Error(err)
	}
}

func TestUseOfAClaimedHugeCountIsBounded(t *testing.T) {
	flight := newInflight(t, 10)
	flight.enter(taken{number: 9})
	flight.used().Store(1<<64 - 1)
	if out := flight.outstanding(); len(out) != 1 || out[0].number != 9 {
		t.Errorf("got %+v", out)
	}
}

// FuzzOutstanding: whatever a dying process has left in the shared memory, the
// next one reads numbers that it has slots for, each once.
func FuzzOutstanding(f *testing.F) {
	const fuzzSlots = 32
	good, err := NewInflight(fuzzSlots)
	if err != nil {
		f.Fatal(err)
	}
	event := taken{number: 5, event: sys.FanotifyEvent{FD: 5, Offset: 4096, Count: 8192, HasRange: true}}
	good.enter(event)
	ev := append([]byte{48, 0, 0, 0, 3, 0, 24, 0}, make([]byte, 40)...)
	ev[16], ev[24], ev[26] = 7, 6, 24
	copy(good.buffer(), append(append([]byte(nil), ev...), ev...))
	seed := append([]byte(nil), good.m.Bytes[24:32]...)
	seed = append(seed, good.m.Bytes[slotsAt:]...)
	f.Add(append(seed, good.buffer()[:200]...))
	if err := good.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	flight, err := NewInflight(fuzzSlots)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := flight.Close(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, memory []byte) {
		// used, then slots, then the buffer.
		b := flight.m.Bytes
		clear(b[24:32])
		clear(b[slotsAt:])
		clear(flight.buffer())
		for _, part := range [][]byte{b[24:32], b[slotsAt:], flight.buffer()} {
			memory = memory[copy(part, memory):]
		}
		seen := make(map[int]bool)
		for _, e := range flight.outstanding() {
			if e.number < 0 || e.number >= fuzzSlots || seen[e.number] {
				t.Fatalf("number %d", e.number)
			}
			seen[e.number] = true
			for _, size := range []int64{0, 1, 4096, 1 << 60} {
				r := extent(e.event, size)
				if r.Off < 0 || r.Len < 0 || !(ondemand.Range{Len: size}).Contains(r) {
					t.Fatalf("event %+v of %d bytes: %v", e.event, size, r)
				}
			}
		}
	})
}
