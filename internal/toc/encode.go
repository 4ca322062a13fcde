package toc

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// The encoding, version 1. Numbers are unsigned varints (encoding/binary), with
// signed ones in zigzag form; strings are a length and bytes. After the magic and a
// version of four bytes, little endian, come
//
//	BlobSize, count of entries, of extended attributes, of chunks,
//
// then each entry:
//
//	type (one byte), bytes that its name shares with the name before, rest of the name,
//	mode, uid, gid, sec (signed), nsec,
//	Char and Block: major, minor      Symlink and Hardlink: link
//	count of extended attributes, each: name, value
//	Regular and Replaced: size, count of chunks, each:
//	  Off less the end of the chunk before in the file, Len,
//	  BlobOff less the end of the range before in the table (signed), BlobLen, Inner,
//	  codec with 0x80 where a digest follows (one byte), 32 bytes of digest,
//
// and last the CRC-32C of all before it, four bytes, little endian.
//
// One TOC has one encoding.
const (
	encodingMagic   = "lacunaTC"
	encodingVersion = 1
	hasDigest       = 0x80
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Encode writes a valid TOC.
func (t *TOC) Encode(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	e := encoder{w: out, table: castagnoli()}
	e.b = append(e.b, encodingMagic...)
	e.b = binary.LittleEndian.AppendUint32(e.b, encodingVersion)
	xattrs, chunks := 0, 0
	for i := range t.Entries {
		xattrs += len(t.Entries[i].Xattrs)
		chunks += len(t.Entries[i].Chunks)
	}
	e.number(uint64(t.BlobSize), uint64(len(t.Entries)), uint64(xattrs), uint64(chunks))
	for i := range t.Entries {
		if err := e.entry(&t.Entries[i]); err != nil {
			return fmt.Errorf("encode %s: %w", quote(t.Entries[i].Name), err)
		}
	}
	if err := e.flush(); err != nil {
		return err
	}
	e.b = binary.LittleEndian.AppendUint32(e.b, e.sum)
	if err := e.flush(); err != nil {
		return err
	}
	return out.Flush()
}

type encoder struct {
	w     *bufio.Writer
	table *crc32.Table
	sum   uint32
	b     []byte
	name  string // of the entry before
	end   int64  // of the compressed range before
}

func (e *encoder) flush() error {
	e.sum = crc32.Update(e.sum, e.table, e.b)
	_, err := e.w.Write(e.b)
	e.b = e.b[:0]
	return err
}

func (e *encoder) number(values ...uint64) {
	for _, v := range values {
		e.b = binary.AppendUvarint(e.b, v)
	}
}

func (e *encoder) signed(v int64) { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) str(s string) {
	e.number(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) entry(x *Entry) error {
	shared := sharedPrefix(e.name, x.Name)
	e.name = x.Name
	e.b = append(e.b, byte(x.Type))
	e.number(uint64(shared))
	e.str(x.Name[shared:])
	e.number(uint64(x.Mode), uint64(x.UID), uint64(x.GID))
	e.signed(x.Sec)
	e.number(uint64(x.Nsec))
	switch x.Type {
	case Char, Block:
		e.number(uint64(x.Major), uint64(x.Minor))
	case Symlink, Hardlink:
		e.str(x.Link)
	}
	e.number(uint64(len(x.Xattrs)))
	for _, a := range x.Xattrs {
		e.str(a.Name)
		e.str(a.Value)
	}
	if x.Type != Regular && x.Type != Replaced {
		return e.flush()
	}
	e.number(uint64(x.Size), uint64(len(x.Chunks)))
	var end int64
	for i := range x.Chunks {
		c := &x.Chunks[i]
		e.number(uint64(c.Off-end), uint64(c.Len))
		e.signed(c.BlobOff - e.end)
		e.number(uint64(c.BlobLen), uint64(c.Inner))
		end, e.end = c.Off+c.Len, c.BlobOff+c.BlobLen
		if err := e.digest(c); err != nil {
			return err
		}
	}
	return e.flush()
}

func (e *encoder) digest(c *Chunk) error {
	if c.Digest == "" {
		e.b = append(e.b, byte(c.Codec))
		return nil
	}
	e.b = append(e.b, byte(c.Codec)|hasDigest)
	var err error
	e.b, err = hex.AppendDecode(e.b, []byte(strings.TrimPrefix(c.Digest, digestPrefix)))
	return err
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
