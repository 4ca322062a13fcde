package tarscan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

const blockSize = 512

// Types of entries (POSIX pax, "ustar Interchange Format"; GNU tar, src/tar.h).
const (
	typeRegular    = '0'
	typeRegularOld = 0
	typeHardlink   = '1'
	typeSymlink    = '2'
	typeChar       = '3'
	typeBlock      = '4'
	typeDirectory  = '5'
	typeFifo       = '6'
	typeContiguous = '7'
	typePAX        = 'x'
	typePAXGlobal  = 'g'
	typeLongName   = 'L'
	typeLongLink   = 'K'
	typeSparse     = 'S'
	typeVolume     = 'V'
)

// maxSpecial bounds the data of entries that only describe others, which is
// held in memory. archive/tar has the same bound.
const maxSpecial = 1 << 20

// header is what a tar says of one file.
type header struct {
	typ                      byte
	name, link               string
	mode, uid, gid           int64
	size                     int64 // of the data in the archive
	sec                      int64
	nsec                     uint32
	major, minor             int64
	pax                      map[string]string
	real                     int64      // the file's size, with its holes
	extents                  []fragment // of a sparse file; nil: all of it
	headerBlock              [blockSize]byte
	ustarMagic, gnuMagic, on bool // on: extended headers came before
}

// archive reads a tar's headers, and leaves the data to its user. It exists
// beside archive/tar for what that one keeps to itself: where in the stream the
// data lies, and which parts of a sparse file are there.
type archive struct {
	r    io.Reader
	pos  int64 // in the stream
	left int64 // data and padding before the next header
	buf  []byte
}

func (a *archive) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.pos += int64(n)
	return n, err
}

// next is the next file's header; io.EOF after the last one.
func (a *archive) next() (*header, error) {
	h := new(header)
	var longName, longLink string
	for {
		if err := a.skip(); err != nil {
			return nil, err
		}
		if err := a.block(h); err != nil {
			if h.on && errors.Is(err, io.EOF) {
				err = fmt.Errorf("extended header of nothing: %w", io.ErrUnexpectedEOF)
			}
			return nil, err
		}
		switch h.typ {
		case typePAX, typePAXGlobal, typeLongName, typeLongLink:
		default:
			return h, a.complete(h, longName, longLink)
		}
		data, err := a.special(h.size)
		if err != nil {
			return nil, err
		}
		h.on = h.on || h.typ != typePAXGlobal
		switch h.typ {
		case typePAX:
			if h.pax, err = parsePAX(data); err != nil {
				return nil, err
			}
		case typePAXGlobal: // what it says of all files, nobody who unpacks layers heeds
		case typeLongName:
			longName = cString(data)
		case typeLongLink:
			longLink = cString(data)
		}
	}
}

// complete adds what extended headers say, and readies a for the data.
func (a *archive) complete(h *header, longName, longLink string) error {
	if err := h.mergePAX(); err != nil {
		return err
	}
	if longName != "" {
		h.name = longName
	}
	if longLink != "" {
		h.link = longLink
	}
	if h.typ == typeRegularOld {
		h.typ = typeRegular
		if strings.HasSuffix(h.name, "/") {
			h.typ = typeDirectory
		}
	}
	switch h.typ {
	case typeHardlink, typeSymlink, typeChar, typeBlock, typeDirectory, typeFifo:
		h.size = 0 // whatever it says: no data follows
	}
	if h.size < 0 || h.size > math.MaxInt64-blockSize {
		return invalid("%.200q: size %d", h.name, h.size)
	}
	a.left = padded(h.size)
	h.real = h.size
	return a.sparse(h)
}

func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// data reads n bytes of the file in hand into p.
func (a *archive) data(p []byte) error {
	n, err := io.ReadFull(a, p)
	a.left -= int64(n)
	return noEOF(err)
}

// skip passes over what is left of the file in hand; io.EOF where the stream ends
// without the last file's padding, as some programs leave it.
func (a *archive) skip() error {
	if a.left == 0 {
		return nil
	}
	if a.left < blockSize { // all data was read
		n, err := io.ReadFull(a, make([]byte, a.left))
		if a.left -= int64(n); errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return err
	}
	for a.left > 0 {
		if a.buf == nil {
			a.buf = make([]byte, 64<<10)
		}
		if err := a.data(a.buf[:min(a.left, int64(len(a.buf)))]); err != nil {
			return err
		}
	}
	return nil
}

// special reads the data of an entry that describes another one.
func (a *archive) special(size int64) ([]byte, error) {
	if size < 0 || size > maxSpecial {
		return nil, invalid("extended header of %d bytes", size)
	}
	data := make([]byte, size)
	a.left = padded(size)
	return data, a.data(data)
}

// block reads a header block and the fields that it has.
func (a *archive) block(h *header) error {
	b := &h.headerBlock
	// A stream that ends without the two blocks of zeros is taken for what it is.
	if _, err := io.ReadFull(a, b[:]); err != nil {
		return err
	}
	if *b == [blockSize]byte{} {
		if _, err := io.ReadFull(a, b[:]); err != nil {
			return err
		}
		if *b == [blockSize]byte{} {
			return io.EOF
		}
		return invalid("a lone block of zeros")
	}
	if err := checkSum(b); err != nil {
		return err
	}
	return h.parse(b)
}

func checkSum(b *[blockSize]byte) error {
	want, err := octal(b[148:156])
	if err != nil {
		return invalid("no tar header")
	}
	// Some programs have summed up signed bytes.
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	if want != unsigned && want != signed {
		return invalid("a tar header's checksum is wrong")
	}
	return nil
}

func (h *header) parse(b *[blockSize]byte) error {
	h.typ = b[156]
	h.name, h.link = cString(b[:100]), cString(b[157:257])
	h.ustarMagic = string(b[257:263]) == "ustar\x00"
	h.gnuMagic = string(b[257:265]) == "ustar  \x00"
	fields := []struct {
		at    *int64
		bytes []byte
	}{
		{&h.mode, b[100:108]}, {&h.uid, b[108:116]}, {&h.gid, b[116:124]}, {&h.size, b[124:136]}, {&h.sec, b[136:148]},
		{&h.major, b[329:337]}, {&h.minor, b[337:345]},
	}
	h.nsec, h.major, h.minor = 0, 0, 0
	if !h.ustarMagic && !h.gnuMagic {
		fields = fields[:5]
	}
	for _, f := range fields {
		var err error
		if *f.at, err = numeric(f.bytes); err != nil {
			return invalid("%.200q: a number in its header is %q", h.name, f.bytes)
		}
	}
	prefix := ""
	switch star := string(b[508:512]) == "tar\x00"; {
	case h.ustarMagic && star: // star's own: times follow a shorter prefix
		prefix = cString(b[345:476])
	case h.ustarMagic:
		prefix = cString(b[345:500])
	case h.gnuMagic:
		// Times of access and change are there, except in layers by programs
		// built with Go before 1.9 (golang.org/issue/12594), which put the prefix.
		_, errA := numeric(b[345:357])
		_, errC := numeric(b[357:369])
		if s := cString(b[345:500]); (errA != nil && b[345] != 0 || errC != nil && b[357] != 0) && isASCII(s) {
			prefix = s
		}
	}
	if prefix != "" {
		h.name = prefix + "/" + h.name
	}
	return nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] == 0 || s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

var errNumber = errors.New("not a number")

// octal is a number as most headers have it: digits among spaces and NULs.
func octal(b []byte) (int64, error) {
	b = bytes.Trim(b, " \x00")
	if len(b) == 0 {
		return 0, nil
	}
	v, err := strconv.ParseUint(cString(b), 8, 63)
	return int64(v), err
}

// numeric is an octal number, or one in base 256, big endian and in two's
// complement, which the highest bit of the first byte marks (GNU tar, star).
func numeric(b []byte) (int64, error) {
	if b[0]&0x80 == 0 {
		return octal(b)
	}
	var fill byte
	if b[0]&0x40 != 0 {
		fill = 0xff
	}
	var v uint64
	for i, c := range b {
		c ^= fill
		if i == 0 {
			c &= 0x7f
		}
		if v>>56 != 0 {
			return 0, errNumber
		}
		v = v<<8 | uint64(c)
	}
	if v>>63 != 0 {
		return 0, errNumber
	}
	if fill != 0 {
		return ^int64(v), nil
	}
	return int64(v), nil
}
