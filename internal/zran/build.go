package zran

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ReadAhead bounds how far Build has read: when it calls emit with a checkpoint,
// it has read no further than to In + ReadAhead.
const ReadAhead = bufferSize + 8

// Total is what Build has read.
type Total struct {
	// Compressed is the size of the file, Trailing included.
	Compressed int64
	// Decompressed is the size of the data.
	Decompressed int64
	// Members is how many there are, at least 1.
	Members int64
	// Trailing is the size of what follows the last member and is ignored.
	Trailing int64
}

// Build reads a gzip file to its end and calls emit for each checkpoint in order;
// the package comment says where they lie. Checkpoints are more than spanSize
// bytes of decompressed data apart, and as many more as their blocks are long. The
// Window is emit's to keep. An error of emit ends Build soon. A hostile file can
// have checkpoints at Out 0 without end, so emit bounds what it keeps.
//
// The decompressed data goes to out, unless that is nil. When emit is called, out
// has been given nothing from Out on and lacks at most WindowSize bytes before it.
func Build(r io.Reader, spanSize int64, out io.Writer, emit func(Checkpoint) error) (Total, error) {
	if spanSize < 1 {
		return Total{}, fmt.Errorf("find checkpoints: span size %d: must be above 0", spanSize)
	}
	if out == nil {
		out = io.Discard
	}
	b := builder{span: spanSize, out: out, emit: emit}
	b.in.reset(r, 0)
	for {
		at := b.in.pos()
		err := b.member()
		if errors.Is(err, errNoMember) {
			err = b.end()
			return b.total, err
		}
		if err != nil {
			return b.total, fmt.Errorf("find checkpoints: member at offset %d: %w", at, err)
		}
	}
}

type builder struct {
	in    input
	span  int64
	out   io.Writer
	emit  func(Checkpoint) error
	last  int64 // Out of the checkpoint before
	total Total
	err   error // of emit or out; ends it all

	// Of the member that is read. total.Decompressed is the size of those before.
	size int64
	crc  uint32
	tail []byte // what they end with, at most WindowSize
}

// member reads one member, or returns errNoMember where none begins.
func (b *builder) member() error {
	if err := readHeader(b.in.br); err != nil {
		return err
	}
	b.size, b.crc = 0, 0
	b.candidate(block{bit: b.in.pos() * 8})
	if b.err != nil {
		return b.err
	}
	data := b.in.inflate(0, nil, b.candidate)
	_, err := io.Copy(b, data)
	if b.err != nil {
		return b.err
	}
	if err != nil {
		return inflateError(err)
	}
	var trailer [trailerSize]byte
	if _, err := io.ReadFull(b.in.br, trailer[:]); err != nil {
		return noEOF(err)
	}
	if got := binary.LittleEndian.Uint32(trailer[:]); got != b.crc {
		return fmt.Errorf("%w: checksum %#08x, computed %#08x", ErrCorrupt, got, b.crc)
	}
	// ISIZE is the size modulo 2^32.
	if got := binary.LittleEndian.Uint32(trailer[4:]); got != uint32(b.size) {
		return fmt.Errorf("%w: size %d, is %d modulo 2^32", ErrCorrupt, got, b.size)
	}
	b.total.Decompressed += b.size
	b.total.Members++
	return nil
}

// Write takes what is decompressed.
func (b *builder) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.crc = crc32.Update(b.crc, crc32.IEEETable, p)
	b.size += int64(len(p))
	n, err := b.out.Write(p)
	b.err = err
	return n, err
}

// candidate is called where a checkpoint may lie, and at each member's end.
func (b *builder) candidate(e block) {
	if e.last {
		b.tail = window(b.tail, e.window)
		return
	}
	c := Checkpoint{In: (e.bit + 7) / 8, Out: b.total.Decompressed + e.out, Bits: uint8(-e.bit & 7)}
	if b.err != nil || c.Out != 0 && c.Out-b.last <= b.span {
		return
	}
	c.Window = window(b.tail, e.window)
	b.last = c.Out
	b.err = b.emit(c)
}

// window is the last WindowSize bytes of two pieces of output.
func window(before, after []byte) []byte {
	after = after[max(0, len(after)-WindowSize):]
	before = before[max(0, len(before)+len(after)-WindowSize):]
	return bytes.Join([][]byte{before, after}, nil)
}

// end reads what follows the last member.
func (b *builder) end() error {
	if b.total.Members == 0 {
		return fmt.Errorf("find checkpoints: %w", ErrNotGzip)
	}
	n, err := io.Copy(io.Discard, b.in.br)
	b.total.Trailing = n
	b.total.Compressed = b.in.pos()
	if err != nil {
		return fmt.Errorf("find checkpoints: read behind the last member: %w", err)
	}
	return nil
}
