package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// On-disk layout, from fs/erofs/erofs_fs.h of Linux 5.19. All numbers are
// little-endian.
const (
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	slotBits    = 5 // an inode lies at nid << slotBits, counted from meta_blkaddr
	slotSize    = 1 << slotBits
	blockBits   = 12
	deviceSize  = 128 // erofs_deviceslot
	direntSize  = 12

	compactSize  = 32
	extendedSize = 64

	compatChecksum = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime    = 0x2 // EROFS_FEATURE_COMPAT_MTIME

	incompatZeroPadding = 0x1 // of compressed data: no concern of ours, mkfs.erofs sets it always
	incompatChunked     = 0x4
	incompatDevices     = 0x8

	layoutPlain  = 0 // EROFS_INODE_FLAT_PLAIN
	layoutInline = 2 // EROFS_INODE_FLAT_INLINE
	layoutChunks = 4 // EROFS_INODE_CHUNK_BASED

	chunkBitsMask = 0x1f // EROFS_CHUNK_FORMAT_BLKBITS_MASK
	chunkIndexes  = 0x20 // EROFS_CHUNK_FORMAT_INDEXES
	chunkSize     = 8    // erofs_inode_chunk_index
	noBlock       = 1<<32 - 1
)

// Type bits of st_mode, inode(7).
const (
	typeMask    = 0o170000
	typeFIFO    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeSocket  = 0o140000
)

// direntType is the FT_ number of include/linux/fs_types.h for the type in
// mode, and 0 where there is no such type.
func direntType(mode uint32) byte {
	switch mode & typeMask {
	case typeRegular:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlock:
		return 4
	case typeFIFO:
		return 5
	case typeSocket:
		return 6
	case typeSymlink:
		return 7
	}
	return 0
}

var le = binary.LittleEndian

// super is the superblock.
type super struct {
	checksum         uint32
	compat, incompat uint32
	blockBits        uint8
	rootNID          uint16
	inodes           uint64
	buildSec         int64
	buildNsec        uint32
	blocks           uint32
	metaBlock        uint32
	xattrBlock       uint32
	uuid             [16]byte
	devices          uint16
	deviceSlot       uint16 // in units of deviceSize
	dirBlockBits     uint8
}

func (s *super) encode() []byte {
	b := make([]byte, superSize)
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[4:], s.checksum)
	le.PutUint32(b[8:], s.compat)
	b[12] = s.blockBits
	le.PutUint16(b[14:], s.rootNID)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint64(b[24:], uint64(s.buildSec))
	le.PutUint32(b[32:], s.buildNsec)
	le.PutUint32(b[36:], s.blocks)
	le.PutUint32(b[40:], s.metaBlock)
	le.PutUint32(b[44:], s.xattrBlock)
	copy(b[48:64], s.uuid[:])
	le.PutUint32(b[80:], s.incompat)
	le.PutUint16(b[86:], s.devices)
	le.PutUint16(b[88:], s.deviceSlot)
	b[90] = s.dirBlockBits
	return b
}

// decodeSuper reads b, which has superSize bytes and the right magic.
func decodeSuper(b []byte) super {
	s := super{
		checksum: le.Uint32(b[4:]), compat: le.Uint32(b[8:]), incompat: le.Uint32(b[80:]),
		blockBits: b[12], rootNID: le.Uint16(b[14:]), inodes: le.Uint64(b[16:]),
		buildSec: int64(le.Uint64(b[24:])), buildNsec: le.Uint32(b[32:]),
		blocks: le.Uint32(b[36:]), metaBlock: le.Uint32(b[40:]), xattrBlock: le.Uint32(b[44:]),
		devices: le.Uint16(b[86:]), deviceSlot: le.Uint16(b[88:]), dirBlockBits: b[90],
	}
	copy(s.uuid[:], b[48:64])
	return s
}

// superChecksum is the checksum of block, the first of the image, with zero in
// place of the checksum: crc32c from the superblock to the end of the block,
// begun with all ones and not inverted at the end
// (erofs_superblock_csum_verify of fs/erofs/super.c, Linux 5.19).
func superChecksum(block []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Checksum(block[superOffset:superOffset+4], table)
	sum = crc32.Update(sum, table, []byte{0, 0, 0, 0})
	sum = crc32.Update(sum, table, block[superOffset+8:BlockSize])
	return ^sum
}

// encodeRdev is new_encode_dev of include/linux/kdev_t.h.
func encodeRdev(r Rdev) uint32 { return r.Minor&0xff | r.Major<<8 | r.Minor&^0xff<<12 }

func decodeRdev(v uint32) Rdev {
	return Rdev{Major: v >> 8 & 0xfff, Minor: v&0xff | v>>12&0xfff00}
}

// rawInode is an inode as it lies on disk.
type rawInode struct {
	compact  bool
	layout   uint8
	xattrs   uint16 // i_xattr_icount
	mode     uint16
	size     uint64
	union    uint32 // address, device number or chunk format
	ino      uint32
	uid, gid uint32
	sec      int64
	nsec     uint32
	nlink    uint32
}

// encode returns the inode in buf.
func (n *rawInode) encode(buf *[extendedSize]byte) []byte {
	*buf = [extendedSize]byte{}
	b := buf[:]
	format := uint16(n.layout) << 1
	le.PutUint16(b[2:], n.xattrs)
	le.PutUint16(b[4:], n.mode)
	le.PutUint32(b[16:], n.union)
	le.PutUint32(b[20:], n.ino)
	if n.compact {
		le.PutUint16(b[0:], format)
		le.PutUint16(b[6:], uint16(n.nlink))
		le.PutUint32(b[8:], uint32(n.size))
		le.PutUint16(b[24:], uint16(n.uid))
		le.PutUint16(b[26:], uint16(n.gid))
		return b[:compactSize]
	}
	le.PutUint16(b[0:], format|1)
	le.PutUint64(b[8:], n.size)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.sec))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.nlink)
	return b
}

// bytes is the length on disk.
func (n *rawInode) bytes() int {
	if n.compact {
		return compactSize
	}
	return extendedSize
}

// xattrBytes is the length of the xattrs that follow the inode
// (erofs_xattr_ibody_size of erofs_fs.h).
func (n *rawInode) xattrBytes() int {
	if n.xattrs == 0 {
		return 0
	}
	return xattrHeader + 4*(int(n.xattrs)-1)
}

// isCompact tells from the first two bytes of an inode whether it is one.
func isCompact(b []byte) bool { return b[0]&1 == 0 }

// decodeInode reads b, which has the length that isCompact implies. A compact
// inode has the image's build time.
func decodeInode(b []byte, s *super) (*rawInode, error) {
	format := le.Uint16(b)
	// Bits above 3 have a meaning only on newer kernels than ours.
	if format > 0xf {
		return nil, unsupported("inode format %#x", format)
	}
	n := &rawInode{
		compact: isCompact(b), layout: uint8(format >> 1),
		xattrs: le.Uint16(b[2:]), mode: le.Uint16(b[4:]), union: le.Uint32(b[16:]), ino: le.Uint32(b[20:]),
	}
	if n.compact {
		n.nlink, n.size = uint32(le.Uint16(b[6:])), uint64(le.Uint32(b[8:]))
		n.uid, n.gid = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		n.sec, n.nsec = s.buildSec, s.buildNsec
		return n, nil
	}
	n.size, n.uid, n.gid = le.Uint64(b[8:]), le.Uint32(b[24:]), le.Uint32(b[28:])
	n.sec, n.nsec, n.nlink = int64(le.Uint64(b[32:])), le.Uint32(b[40:]), le.Uint32(b[44:])
	return n, nil
}
