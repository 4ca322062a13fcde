package zran

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Flags of a member's header (RFC 1952, section 2.3.1).
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 7 << 5
)

// trailerSize is CRC32 and ISIZE at a member's end (RFC 1952, section 2.3.1).
const trailerSize = 8

var magic = []byte{0x1f, 0x8b}

// errNoMember: what comes does not begin as a member does, or nothing comes.
var errNoMember = errors.New("no gzip member")

// readHeader reads a member's header. Where none begins it returns errNoMember
// and has read nothing: gzip(1) too looks at the two magic bytes only.
func readHeader(br *bufio.Reader) error {
	switch b, err := br.Peek(len(magic)); {
	case bytes.Equal(b, magic):
	case err == nil, errors.Is(err, io.EOF):
		return errNoMember
	default:
		return err
	}
	var fixed [10]byte
	if _, err := io.ReadFull(br, fixed[:]); err != nil {
		return noEOF(err)
	}
	const deflate = 8
	if fixed[2] != deflate {
		return fmt.Errorf("%w: compression method %d", ErrCorrupt, fixed[2])
	}
	flags := fixed[3]
	if flags&flagReserved != 0 {
		return fmt.Errorf("%w: header flags %#x", ErrCorrupt, flags)
	}
	h := headerReader{br: br, crc: crc32.ChecksumIEEE(fixed[:])}
	if flags&flagExtra != 0 {
		h.skip(h.uint16())
	}
	if flags&flagName != 0 {
		h.skipString()
	}
	if flags&flagComment != 0 {
		h.skipString()
	}
	if flags&flagHeaderCRC != 0 {
		want := uint16(h.crc)
		if got := h.uint16(); h.err == nil && got != want {
			return fmt.Errorf("%w: header checksum %#04x, computed %#04x", ErrCorrupt, got, want)
		}
	}
	return noEOF(h.err)
}

// headerReader reads the optional fields. After an error it reads zeros.
type headerReader struct {
	br  *bufio.Reader
	crc uint32
	err error
}

func (h *headerReader) byte() byte {
	if h.err != nil {
		return 0
	}
	b, err := h.br.ReadByte()
	if err != nil {
		h.err = err
		return 0
	}
	h.crc = crc32.Update(h.crc, crc32.IEEETable, []byte{b})
	return b
}

func (h *headerReader) uint16() uint16 {
	lo := h.byte()
	return binary.LittleEndian.Uint16([]byte{lo, h.byte()})
}

func (h *headerReader) skip(n uint16) {
	for ; n > 0; n-- {
		h.byte()
	}
}

// skipString skips what ends with a zero byte, and ends at an error too.
func (h *headerReader) skipString() {
	for h.byte() != 0 {
		continue
	}
}

// noEOF is err where data must not end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
