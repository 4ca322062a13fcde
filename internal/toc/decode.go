package toc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
)

// maxEncoded bounds what Decode takes into memory: twice what a table of
// contents within the limits can take.
const maxEncoded = 2 << 30

// Decode reads an encoded TOC from r to its end. What is not an encoding, whole
// and unchanged, is ErrInvalid, as are entries, names and ranges that no valid TOC
// has. Whether names occur twice or lie below files was seen to before it was
// encoded, and takes Validate, which costs as much again.
func Decode(r io.Reader) (*TOC, error) {
	var b bytes.Buffer // grows in fewer steps than io.ReadAll's
	_, err := b.ReadFrom(io.LimitReader(r, maxEncoded))
	if err != nil {
		return nil, fmt.Errorf("read table of contents: %w", err)
	}
	t, err := decode(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("decode table of contents: %w", err)
	}
	return t, nil
}

// Check reads an encoded TOC from r to its end and tells whether it is what Encode
// wrote: ErrInvalid where it is not. It takes little beside Decode.
func Check(r io.Reader) error {
	head := make([]byte, headSize+4)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("check table of contents: %w", err)
	}
	if err := checkHead(head[:n]); err != nil {
		return fmt.Errorf("check table of contents: %w", err)
	}
	sum := crc32.New(castagnoli())
	sum.Write(head)
	if _, err := io.CopyBuffer(sum, r, make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("check table of contents: %w", err)
	}
	// The sum over bytes and their own sum is the same for all bytes, also for none,
	// whose sum is zero.
	if sum.Sum32() != crc32.Checksum(make([]byte, 4), castagnoli()) {
		return fmt.Errorf("check table of contents: wrong checksum: %w", ErrInvalid)
	}
	return nil
}

// headSize is the size of the magic and the version.
const headSize = len(encodingMagic) + 4

// checkHead looks at the start of an encoding, which has a checksum at least.
func checkHead(data []byte) error {
	if len(data) < headSize+4 || string(data[:len(encodingMagic)]) != encodingMagic {
		return fmt.Errorf("no magic number: %w", ErrInvalid)
	}
	if v := binary.LittleEndian.Uint32(data[len(encodingMagic):]); v != encodingVersion {
		return fmt.Errorf("version %d, only %d is known: %w", v, encodingVersion, ErrInvalid)
	}
	return nil
}

func decode(data []byte) (*TOC, error) {
	if err := checkHead(data); err != nil {
		return nil, err
	}
	body := data[:len(data)-4]
	if crc32.Checksum(body, castagnoli()) != binary.LittleEndian.Uint32(data[len(body):]) {
		return nil, fmt.Errorf("wrong checksum: %w", ErrInvalid)
	}
	d := decoder{data: body[headSize:]}
	t := &TOC{BlobSize: d.size()}
	entries, xattrs, chunks := d.count(9), d.count(2), d.count(5)
	if d.bad || entries > MaxEntries || chunks > MaxEntries {
		return nil, fmt.Errorf("%d entries, %d chunks: %w", entries, chunks, ErrInvalid)
	}
	t.Entries = make([]Entry, entries)
	d.xattrs, d.chunks = make([]Xattr, xattrs), make([]Chunk, chunks)
	for i := range t.Entries {
		d.entry(&t.Entries[i])
		if d.bad {
			return nil, fmt.Errorf("entry %d of %d: %w", i, entries, ErrInvalid)
		}
	}
	if len(d.data)+len(d.xattrs)+len(d.chunks) > 0 {
		return nil, fmt.Errorf("something follows its end: %w", ErrInvalid)
	}
	return t, t.checkEach(false)
}

// decoder reads values off data. What is not there, or not in its one form,
// makes it bad, and zero from then on.
type decoder struct {
	data   []byte
	bad    bool
	arena  arena
	name   []byte
	end    int64
	xattrs []Xattr // not yet given to an entry
	chunks []Chunk
}

// arena makes strings out of few large pieces of memory, which live as long as
// any of the strings.
type arena struct{ piece strings.Builder }

func (a *arena) text(b []byte) string {
	if a.piece.Cap()-a.piece.Len() < len(b) {
		a.piece = strings.Builder{}
		a.piece.Grow(max(len(b), 256<<10))
	}
	start := a.piece.Len()
	a.piece.Write(b)
	return a.piece.String()[start:]
}

func (d *decoder) number() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 || (n > 1 && d.data[n-1] == 0) {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

func (d *decoder) signed() int64 {
	v := d.number()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) size() int64 {
	v := d.number()
	if v > math.MaxInt64 {
		d.bad, v = true, 0
	}
	return int64(v)
}

func (d *decoder) uint32() uint32 {
	v := d.number()
	if v > math.MaxUint32 {
		d.bad, v = true, 0
	}
	return uint32(v)
}

// count is a number of things that take at least the given bytes each.
func (d *decoder) count(each int) int {
	v := d.number()
	if v > uint64(len(d.data)/each) {
		d.bad, v = true, 0
	}
	return int(v)
}

func (d *decoder) take(n int) []byte {
	if n > len(d.data) {
		d.bad, d.data = true, nil
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bytes() []byte { return d.take(d.count(1)) }

func (d *decoder) entry(e *Entry) {
	e.Type = Type(d.byte())
	shared := d.number()
	rest := d.bytes()
	// As much as possible is shared: a name has one form.
	if shared > uint64(len(d.name)) || (len(rest) > 0 && shared < uint64(len(d.name)) && d.name[shared] == rest[0]) {
		d.bad = true
		return
	}
	d.name = append(d.name[:shared], rest...)
	e.Name = d.arena.text(d.name)
	e.Mode, e.UID, e.GID = d.uint32(), d.uint32(), d.uint32()
	e.Sec, e.Nsec = d.signed(), d.uint32()
	switch e.Type {
	case Char, Block:
		e.Major, e.Minor = d.uint32(), d.uint32()
	case Symlink, Hardlink:
		e.Link = d.arena.text(d.bytes())
	}
	if n := d.count(2); n > len(d.xattrs) {
		d.bad = true
		return
	} else if n > 0 {
		e.Xattrs, d.xattrs = d.xattrs[:n:n], d.xattrs[n:]
	}
	for i := range e.Xattrs {
		e.Xattrs[i] = Xattr{d.arena.text(d.bytes()), d.arena.text(d.bytes())}
	}
	if e.Type == Regular || e.Type == Replaced {
		d.contents(e)
	}
}

// contents reads what an entry with data has besides.
func (d *decoder) contents(e *Entry) {
	e.Size = d.size()
	if n := d.count(5); n > len(d.chunks) {
		d.bad = true
		return
	} else if n > 0 {
		e.Chunks, d.chunks = d.chunks[:n:n], d.chunks[n:]
	}
	var end int64
	for i := range e.Chunks {
		c := &e.Chunks[i]
		c.Off, c.Len = end+d.size(), d.size()
		c.BlobOff = d.end + d.signed()
		c.BlobLen, c.Inner = d.size(), d.size()
		end, d.end = c.Off+c.Len, c.BlobOff+c.BlobLen
		codec := d.byte()
		c.Codec = Codec(codec &^ hasDigest)
		if codec&hasDigest != 0 {
			var text [len(digestPrefix) + 64]byte
			copy(text[:], digestPrefix)
			if raw := d.take(32); raw != nil {
				hex.Encode(text[len(digestPrefix):], raw)
				c.Digest = d.arena.text(text[:])
			}
		}
		// Sums that overflow are nobody's ranges.
		if d.bad = d.bad || end < c.Off || c.Off < 0 || d.end < c.BlobOff || c.BlobOff < 0; d.bad {
			return
		}
	}
}
