package erofs

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
)

// Write writes img to w. Everything is checked before the first byte is
// written: ErrInvalid, with an EntryError where it is about one entry, means
// that nothing was. The length is a multiple of BlockSize.
//
// The tree is not changed, and must not change meanwhile.
func Write(w io.Writer, img *Image) error {
	t, err := collect(img)
	if err != nil {
		return fmt.Errorf("write filesystem image: %w", err)
	}
	l, err := place(t)
	if err != nil {
		return fmt.Errorf("write filesystem image: %w", err)
	}
	// Once for the digest and the first block, which has the checksum and the
	// UUID in it, then once more for the rest.
	first := &firstBlock{}
	digest := sha256.New()
	if err := l.emit(io.MultiWriter(first, digest)); err != nil {
		return fmt.Errorf("write filesystem image: %w", err)
	}
	l.finish(first.bytes[:], digest.Sum(nil))
	if _, err := w.Write(first.bytes[:]); err != nil {
		return fmt.Errorf("write filesystem image: %w", err)
	}
	if err := l.emit(&afterFirst{w: w, skip: BlockSize}); err != nil {
		return fmt.Errorf("write filesystem image: %w", err)
	}
	return nil
}

// finish puts UUID and checksum into the first block.
func (l *layout) finish(block, digest []byte) {
	s := l.super()
	copy(s.uuid[:], digest)
	// Version 8, whose meaning is ours, of the variant of RFC 9562 section 5.8.
	s.uuid[6] = s.uuid[6]&0x0f | 0x80
	s.uuid[8] = s.uuid[8]&0x3f | 0x80
	copy(block[superOffset:], s.encode())
	s.checksum = superChecksum(block)
	copy(block[superOffset:], s.encode())
}

// firstBlock keeps the first block that is written to it.
type firstBlock struct {
	bytes [BlockSize]byte
	n     int
}

func (f *firstBlock) Write(p []byte) (int, error) {
	f.n += copy(f.bytes[f.n:], p)
	return len(p), nil
}

// afterFirst drops the first skip bytes that are written to it.
type afterFirst struct {
	w    io.Writer
	skip int
}

func (a *afterFirst) Write(p []byte) (int, error) {
	n := min(a.skip, len(p))
	a.skip -= n
	if n == len(p) {
		return n, nil
	}
	m, err := a.w.Write(p[n:])
	return n + m, err
}

// out counts what goes to w.
type out struct {
	w     *bufio.Writer
	pos   uint64
	zeros [BlockSize]byte
}

func (o *out) bytes(b []byte) error {
	n, err := o.w.Write(b)
	o.pos += uint64(n)
	return err
}

// to writes zeros up to pos.
func (o *out) to(pos uint64) error {
	for o.pos < pos {
		if err := o.bytes(o.zeros[:min(pos-o.pos, BlockSize)]); err != nil {
			return err
		}
	}
	if o.pos > pos {
		panic(fmt.Sprintf("erofs: internal error: at %d, wanted %d", o.pos, pos))
	}
	return nil
}

// emit writes the whole image to w, without UUID and checksum.
func (l *layout) emit(w io.Writer) error {
	o := &out{w: bufio.NewWriterSize(w, 64<<10)}
	if err := o.to(superOffset); err != nil {
		return err
	}
	s := l.super()
	if err := o.bytes(s.encode()); err != nil {
		return err
	}
	buf := make([]byte, 0, BlockSize)
	for i := range l.nodes {
		n := &l.nodes[i]
		if err := o.to(n.pos); err != nil {
			return err
		}
		buf = l.appendInode(buf[:0], i)
		if err := o.bytes(buf); err != nil {
			return err
		}
		if i == 0 {
			if err := l.emitDevices(o); err != nil {
				return err
			}
		}
	}
	if err := l.emitShared(o); err != nil {
		return err
	}
	for i := range l.nodes {
		if err := l.emitBlocks(o, &l.nodes[i], buf); err != nil {
			return err
		}
	}
	if err := o.to(uint64(l.blocks) * BlockSize); err != nil {
		return err
	}
	return o.w.Flush()
}

func (l *layout) super() super {
	s := super{
		compat:    compatChecksum | compatMtime,
		blockBits: blockBits,
		rootNID:   uint16(l.nodes[0].pos >> slotBits),
		inodes:    uint64(len(l.nodes)),
		buildSec:  l.sec, buildNsec: l.nsec,
		blocks:     l.blocks,
		xattrBlock: l.xattrBlock,
		devices:    uint16(len(l.img.Devices)),
		deviceSlot: uint16(l.deviceTable / deviceSize),
	}
	if s.devices > 0 {
		s.incompat = incompatDevices | incompatChunked
	}
	return s
}

// emitDevices writes the device table, where there is one.
func (l *layout) emitDevices(o *out) error {
	if len(l.img.Devices) == 0 {
		return nil
	}
	if err := o.to(l.deviceTable); err != nil {
		return err
	}
	for i, d := range l.img.Devices {
		var slot [deviceSize]byte
		copy(slot[:MaxTag], d.Tag)
		le.PutUint32(slot[64:], uint32(d.Blocks))
		le.PutUint32(slot[68:], l.deviceStart[i])
		if err := o.bytes(slot[:]); err != nil {
			return err
		}
	}
	return nil
}

// emitShared writes the xattrs that several inodes share.
func (l *layout) emitShared(o *out) error {
	if err := o.to(uint64(l.xattrBlock) * BlockSize); err != nil {
		return err
	}
	var buf []byte
	for i := range l.xattrs.records {
		if !l.xattrs.records[i].shared {
			continue
		}
		buf = l.xattrs.records[i].appendTo(buf[:0])
		if err := o.bytes(buf); err != nil {
			return err
		}
	}
	return o.to(uint64(l.dataBlock) * BlockSize)
}

// appendInode appends an inode with what follows it.
func (l *layout) appendInode(b []byte, i int) []byte {
	n := &l.nodes[i]
	in := n.in
	raw := rawInode{
		compact: n.compact, layout: layoutPlain, mode: uint16(in.Mode), size: n.size,
		union: n.block, ino: uint32(i + 1), uid: in.UID, gid: in.GID,
		sec: in.Sec, nsec: in.Nsec, nlink: n.nlink,
	}
	if n.inline {
		raw.layout = layoutInline
	}
	if n.bodySize > 0 {
		raw.xattrs = uint16((n.bodySize-xattrHeader)/4 + 1)
	}
	switch in.Mode & typeMask {
	case typeRegular:
		raw.size = uint64(in.Size)
		if in.Size > 0 {
			raw.layout, raw.union = layoutChunks, chunkIndexes|chunkExponent(in.Size)
		}
	case typeChar, typeBlock:
		raw.union = encodeRdev(in.Rdev)
	}
	var buf [extendedSize]byte
	b = append(b, raw.encode(&buf)...)
	if n.bodySize > 0 {
		b = l.xattrs.appendBody(b, n.xattrs)
	}
	if in.Mode&typeMask == typeRegular && in.Size > 0 {
		return appendChunks(b, in)
	}
	if !n.inline {
		return b
	}
	if in.Mode&typeMask == typeSymlink {
		return append(b, in.Link...)
	}
	entries := l.entries[n.first : n.first+n.count]
	for range n.blocks {
		count, _ := fillBlock(entries)
		entries = entries[count:]
	}
	return l.appendEntries(b, entries)
}

// appendChunks appends the chunk index behind an inode and its xattrs, which begin
// at a multiple of chunkSize in the image.
func appendChunks(b []byte, in *Inode) []byte {
	for len(b)%chunkSize > 0 {
		b = append(b, 0)
	}
	block := uint32(in.Offset / BlockSize)
	for i := range chunkCount(in.Size) {
		b = le.AppendUint16(b, 0)
		b = le.AppendUint16(b, uint16(in.Device+1))
		b = le.AppendUint32(b, block+uint32(i<<chunkExponent(in.Size)))
	}
	return b
}

// emitBlocks writes what of a directory or symlink lies in blocks of its own.
func (l *layout) emitBlocks(o *out, n *node, buf []byte) error {
	if n.blocks == 0 {
		return nil
	}
	if err := o.to(uint64(n.block) * BlockSize); err != nil {
		return err
	}
	if n.in.Mode&typeMask == typeSymlink {
		return o.bytes([]byte(n.in.Link))
	}
	entries := l.entries[n.first : n.first+n.count]
	for i := range uint64(n.blocks) {
		if err := o.to((uint64(n.block) + i) * BlockSize); err != nil {
			return err
		}
		count, _ := fillBlock(entries)
		if err := o.bytes(l.appendEntries(buf[:0], entries[:count])); err != nil {
			return err
		}
		entries = entries[count:]
	}
	return nil
}

// appendEntries appends one block of a directory: the entries, then their
// names, of which the last ends where the block or the directory does, or at a NUL.
func (l *layout) appendEntries(b []byte, entries []dirent) []byte {
	at := len(entries) * direntSize
	for _, e := range entries {
		n := &l.nodes[e.node]
		b = le.AppendUint64(b, n.pos>>slotBits)
		b = le.AppendUint16(b, uint16(at))
		b = append(b, direntType(n.in.Mode), 0)
		at += len(e.name)
	}
	for _, e := range entries {
		b = append(b, e.name...)
	}
	return b
}
