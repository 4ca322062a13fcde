package erofs

import (
	"bytes"
	"fmt"
	"io"
)

// Reader reads a filesystem image. It may be used by several goroutines at
// once where its io.ReaderAt may.
type Reader struct {
	src     io.ReaderAt
	size    uint64 // of the image in bytes
	super   super
	devices []Device
	starts  []uint64 // first block of each device in the common address space
}

// Info is what the superblock says.
type Info struct {
	UUID   [16]byte
	Inodes uint64
	// Blocks of the image itself, without its devices.
	Blocks uint64
	// BuildSec and BuildNsec are the time of inodes that have none of their own.
	BuildSec  int64
	BuildNsec uint32
}

// Open reads the superblock and the device table of the image of size bytes
// in src. ErrCorrupt: it is not an image, or a damaged one. ErrNotSupported:
// it has features that are not read here, such as compression.
func Open(src io.ReaderAt, size int64) (*Reader, error) {
	r := &Reader{src: src}
	if size < BlockSize {
		return nil, fmt.Errorf("open filesystem image: %w", corrupt("%d bytes are too few", size))
	}
	r.size = uint64(size)
	first, err := r.read(0, BlockSize)
	if err == nil {
		err = r.readSuper(first)
	}
	if err == nil {
		err = r.readDevices()
	}
	if err != nil {
		return nil, fmt.Errorf("open filesystem image: %w", err)
	}
	return r, nil
}

// read returns the bytes [pos, pos+n) of the image.
func (r *Reader) read(pos uint64, n int) ([]byte, error) {
	if n < 0 || pos > r.size || uint64(n) > r.size-pos {
		return nil, corrupt("[%d,+%d) pass the end %d of the image", pos, n, r.size)
	}
	b := make([]byte, n)
	if m, err := r.src.ReadAt(b, int64(pos)); m < n {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read filesystem image at %d: %w", pos, err)
	}
	return b, nil
}

func (r *Reader) readSuper(first []byte) error {
	if le.Uint32(first[superOffset:]) != superMagic {
		return corrupt("no superblock")
	}
	s := decodeSuper(first[superOffset : superOffset+superSize])
	const known = incompatZeroPadding | incompatChunked | incompatDevices
	switch {
	case s.blockBits != blockBits:
		return unsupported("blocks of 2^%d bytes", s.blockBits)
	case s.compat&compatChecksum != 0 && s.checksum != superChecksum(first):
		return corrupt("checksum of the superblock is %#x, and says %#x", superChecksum(first), s.checksum)
	case s.incompat&^known != 0:
		return unsupported("features %#x", s.incompat&^known)
	case s.dirBlockBits != 0:
		return unsupported("directory blocks of their own size")
	case uint64(s.blocks)*BlockSize != r.size:
		return corrupt("%d blocks in %d bytes", s.blocks, r.size)
	case s.buildNsec > 999_999_999:
		return corrupt("build time has %d nanoseconds", s.buildNsec)
	}
	r.super = s
	return nil
}

func (r *Reader) readDevices() error {
	if r.super.incompat&incompatDevices == 0 {
		return nil
	}
	next := uint64(r.super.blocks)
	for i := range int(r.super.devices) {
		slot, err := r.read((uint64(r.super.deviceSlot)+uint64(i))*deviceSize, deviceSize)
		if err != nil {
			return err
		}
		tag, rest, _ := bytes.Cut(slot[:MaxTag], []byte{0})
		blocks, start := uint64(le.Uint32(slot[64:])), uint64(le.Uint32(slot[68:]))
		switch {
		case len(bytes.Trim(rest, "\x00")) > 0:
			return corrupt("tag of device %d goes on behind a NUL", i)
		case start == 0: // mkfs.erofs 1.5: reached by its number only
		case start < next:
			return corrupt("device %d overlaps what comes before it", i)
		case start+blocks > maxBlocks:
			return corrupt("device %d passes the end of the address space", i)
		default:
			next = start + blocks
		}
		r.devices = append(r.devices, Device{Tag: string(tag), Blocks: blocks})
		r.starts = append(r.starts, start)
	}
	return nil
}

// Info returns what the superblock says.
func (r *Reader) Info() Info {
	s := &r.super
	return Info{UUID: s.uuid, Inodes: s.inodes, Blocks: uint64(s.blocks), BuildSec: s.buildSec, BuildNsec: s.buildNsec}
}

// Devices returns the extra devices, in the order in which the kernel is to
// be told of them. A device of 0 blocks may be one of which the image does not
// say how long it is, as mkfs.erofs 1.5 leaves it.
func (r *Reader) Devices() []Device { return append([]Device(nil), r.devices...) }

// Root is the number of the root directory.
func (r *Reader) Root() uint64 { return uint64(r.super.rootNID) }

// Node is an inode as an image has it.
type Node struct {
	// NID is its number, which stat(2) shows as st_ino.
	NID uint64
	// Nlink is the number of its names; of a directory 2 and one for each
	// directory in it.
	Nlink uint32
	// Inode has all but Link, Xattrs, Children, Device and Offset, for which
	// the Reader has methods.
	Inode

	raw *rawInode
	end uint64 // byte position behind inode and xattrs
}

// DataSize is st_size: of a directory and a symlink what they take, of a regular file
// Size.
func (n *Node) DataSize() int64 {
	switch n.Mode & typeMask {
	case typeRegular, typeDir, typeSymlink:
		return int64(n.raw.size)
	}
	return 0
}

// Node reads the inode with that number.
func (r *Reader) Node(nid uint64) (*Node, error) {
	n, err := r.node(nid)
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", nid, err)
	}
	return n, nil
}

func (r *Reader) node(nid uint64) (*Node, error) {
	if nid > r.size>>slotBits {
		return nil, corrupt("it passes the end of the image")
	}
	pos := uint64(r.super.metaBlock)*BlockSize + nid<<slotBits
	b, err := r.read(pos, compactSize)
	if err == nil && !isCompact(b) {
		b, err = r.read(pos, extendedSize)
	}
	if err != nil {
		return nil, err
	}
	raw, err := decodeInode(b, &r.super)
	if err != nil {
		return nil, err
	}
	n := &Node{NID: nid, Nlink: raw.nlink, raw: raw}
	n.end = pos + uint64(raw.bytes()+raw.xattrBytes())
	n.Inode = Inode{Mode: uint32(raw.mode), UID: raw.uid, GID: raw.gid, Sec: raw.sec, Nsec: raw.nsec}
	switch {
	case direntType(n.Mode) == 0:
		return nil, corrupt("mode %#o has no file type that there is", n.Mode)
	case raw.nlink == 0:
		return nil, corrupt("no links")
	case raw.nsec > 999_999_999:
		return nil, corrupt("%d nanoseconds", raw.nsec)
	case raw.size > 1<<63-1:
		return nil, corrupt("size is negative")
	case n.end > r.size:
		return nil, corrupt("its xattrs pass the end of the image")
	}
	return n, r.checkLayout(n)
}

// checkLayout checks what the type of the inode says about its data.
func (r *Reader) checkLayout(n *Node) error {
	switch raw := n.raw; n.Mode & typeMask {
	case typeChar, typeBlock:
		n.Rdev = decodeRdev(raw.union)
	case typeFIFO, typeSocket:
	case typeRegular:
		n.Size = int64(raw.size)
		if raw.layout != layoutPlain && raw.layout != layoutInline && raw.layout != layoutChunks {
			return unsupported("data layout %d", raw.layout)
		}
	default:
		if raw.layout != layoutPlain && raw.layout != layoutInline {
			return unsupported("data layout %d of a directory or symlink", raw.layout)
		}
		if raw.size == 0 || raw.size > r.size {
			return corrupt("size is %d", raw.size)
		}
		if n.Mode&typeMask == typeSymlink && raw.size > MaxLink {
			return corrupt("target of %d bytes", raw.size)
		}
	}
	return nil
}

// tail is the length of what lies inline behind a flat inode.
func (n *Node) tail() uint64 {
	if n.raw.layout != layoutInline || n.raw.size == 0 {
		return 0
	}
	if tail := n.raw.size % BlockSize; tail > 0 {
		return tail
	}
	return BlockSize
}

// content reads the bytes [from, from+length) of a flat inode's data, which
// must lie in the image and in one block of it.
func (r *Reader) content(n *Node, from uint64, length int) ([]byte, error) {
	whole := n.raw.size - n.tail()
	if from >= whole {
		pos := n.end + from - whole
		if n.end%BlockSize+n.tail() > BlockSize {
			return nil, corrupt("inline data pass the end of a block")
		}
		return r.read(pos, length)
	}
	return r.read(uint64(n.raw.union)*BlockSize+from, length)
}

// Link reads the target of a symlink.
func (r *Reader) Link(n *Node) (string, error) {
	if n.Mode&typeMask != typeSymlink {
		return "", fmt.Errorf("read the target of inode %d: it is not a symlink", n.NID)
	}
	b, err := r.content(n, 0, int(n.raw.size))
	if err == nil && bytes.IndexByte(b, 0) >= 0 {
		err = corrupt("there is a NUL in it")
	}
	if err != nil {
		return "", fmt.Errorf("read the target of inode %d: %w", n.NID, err)
	}
	return string(b), nil
}

// metadataBytes is how many bytes of the image the inode takes, without the data
// of a regular file in blocks of their own.
func (n *Node) metadataBytes() uint64 {
	size := uint64(n.raw.bytes() + n.raw.xattrBytes())
	switch n.Mode & typeMask {
	case typeDir, typeSymlink:
		size += n.raw.size
	case typeRegular:
		if n.raw.layout == layoutChunks {
			count, width := n.chunkIndex()
			size += count * width
		}
		size += n.tail()
	}
	return size
}
