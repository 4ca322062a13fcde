package soci

import (
	"encoding/binary"
	"math"
)

// flat reads a FlatBuffer (flatbuffers.dev, "FlatBuffer Internals") of which
// parts may be missing. Whatever a value refers to is checked to lie in the buffer
// and to be aligned; the first thing that is wrong stays in err, and all values are
// zero from then on.
type flat struct {
	pieces []piece // what is there of it
	size   int64
	text   int64 // bytes of strings that may still be read: they may be shared
	// records of PAX headers that may still be read.
	records int64
	err     error
	// missed is the offset of what was in none of the pieces; -1: nothing.
	missed int64
}

type piece struct {
	off  int64
	data []byte
}

// fail keeps the first error.
func (f *flat) fail(format string, args ...any) {
	if f.err == nil {
		f.err = invalid(format, args...)
	}
}

// bytes are those of [off, off+n); nil where they are not there.
func (f *flat) bytes(off, n int64) []byte {
	if f.err != nil {
		return nil
	}
	if off < 0 || n < 0 || off > f.size-n {
		f.fail("it refers to [%d,+%d) of its %d bytes", off, n, f.size)
		return nil
	}
	for _, p := range f.pieces {
		if off >= p.off && off+n <= p.off+int64(len(p.data)) {
			return p.data[off-p.off:][:n]
		}
	}
	f.missed = off
	f.fail("it refers to [%d,+%d), which is among its checkpoints", off, n)
	return nil
}

// there is how many bytes are there.
func (f *flat) there() (n int64) {
	for _, p := range f.pieces {
		n += int64(len(p.data))
	}
	return n
}

func (f *flat) u16(off int64) int64 {
	if b := f.bytes(off, 2); b != nil {
		return int64(binary.LittleEndian.Uint16(b))
	}
	return 0
}

func (f *flat) u32(off int64) int64 {
	if b := f.bytes(off, 4); b != nil {
		return int64(binary.LittleEndian.Uint32(b))
	}
	return 0
}

func (f *flat) i64(off int64) int64 {
	if b := f.bytes(off, 8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
}

// follow is where the offset at off leads to.
func (f *flat) follow(off int64) int64 {
	n := f.u32(off)
	to := off + n
	if f.err == nil && (n == 0 || n > math.MaxInt32 || to%4 != 0 || to > f.size-4) {
		f.fail("the offset at %d leads to %d of %d bytes", off, to, f.size)
	}
	return to
}

// table is one with its vtable.
type table struct {
	f                 *flat
	pos, size         int64
	vtable, vtableLen int64
}

// table reads what says where the fields of the table at pos are.
func (f *flat) table(pos int64) table {
	t := table{f: f, pos: pos}
	t.vtable = pos - int64(int32(f.u32(pos)))
	t.vtableLen, t.size = f.u16(t.vtable), f.u16(t.vtable+2)
	if f.err == nil && (t.vtable%2 != 0 || t.vtableLen%2 != 0 || t.vtableLen < 4 || t.size < 4) {
		f.fail("the table at %d is none", pos)
	}
	f.bytes(t.vtable, t.vtableLen)
	f.bytes(pos, t.size)
	return t
}

// field is the position of a field of the given width, 0 where it is left out.
func (t table) field(slot, width int64) int64 {
	at := 4 + 2*slot
	if t.f.err != nil || at+2 > t.vtableLen {
		return 0
	}
	off := t.f.u16(t.vtable + at)
	switch {
	case t.f.err != nil || off == 0:
		return 0
	case off < 4 || off+width > t.size || (t.pos+off)%min(width, 4) != 0:
		t.f.fail("field %d of the table at %d lies outside of it", slot, t.pos)
		return 0
	}
	return t.pos + off
}

func (t table) i64(slot int64) int64 {
	if at := t.field(slot, 8); at != 0 {
		return t.f.i64(at)
	}
	return 0
}

func (t table) u32(slot int64) uint32 {
	if at := t.field(slot, 4); at != 0 {
		return uint32(t.f.u32(at))
	}
	return 0
}

// i8 is a field that is otherwise what the schema says.
func (t table) i8(slot int64, otherwise int8) int8 {
	if at := t.field(slot, 1); at != 0 {
		if b := t.f.bytes(at, 1); b != nil {
			return int8(b[0])
		}
	}
	return otherwise
}

// ref is where a field leads to that is a string, a vector or a table; 0 where it
// is left out.
func (t table) ref(slot int64) int64 {
	if at := t.field(slot, 4); at != 0 {
		return t.f.follow(at)
	}
	return 0
}

// vector is where the elements of a field begin, of the given width, and how
// many there are. They need not be in memory.
func (t table) vector(slot, width int64) (at, n int64) {
	at = t.ref(slot)
	if at == 0 || t.f.err != nil {
		return 0, 0
	}
	if n = t.f.u32(at); n > (t.f.size-at-4)/width {
		t.f.fail("the vector at %d has %d elements, which %d bytes do not hold", at, n, t.f.size)
		return 0, 0
	}
	return at + 4, n
}

// string is a field's string.
func (t table) string(slot int64) string {
	if at := t.ref(slot); at != 0 {
		return t.f.string(at)
	}
	return ""
}

// string is the one at off, which a NUL ends.
func (f *flat) string(off int64) string {
	n := f.u32(off)
	b := f.bytes(off+4, n+1)
	if b == nil {
		return ""
	}
	if f.text -= n; b[n] != 0 || f.text < 0 {
		f.fail("the string at %d has no end, or there are too many", off)
		return ""
	}
	return string(b[:n])
}
