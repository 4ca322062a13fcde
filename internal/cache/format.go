package cache

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// The presence file as docs/cache-format.md lays it down.
const (
	presenceVersion = 1

	slotSize   = 4096
	slotHead   = 128
	bitmapSize = slotSize - slotHead
	// pageBlocks is how many blocks one page covers: 124 MiB of data.
	pageBlocks = bitmapSize * 8
	pageBytes  = pageBlocks * ondemand.BlockSize
)

var (
	headerMagic = [8]byte{'l', 'a', 'c', 'u', 'n', 'a', 'P', 'H'}
	slotMagic   = [8]byte{'l', 'a', 'c', 'u', 'n', 'a', 'P', 'S'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// key is an object's id as bytes.
type key [32]byte

// parseKey turns an id into its bytes: 64 lower-case hexadecimal digits.
func parseKey(id ondemand.ObjectID) (key, error) {
	var k key
	bad := len(id) != hex.EncodedLen(len(k))
	if !bad {
		_, err := hex.Decode(k[:], []byte(id))
		bad = err != nil || hex.EncodeToString(k[:]) != string(id)
	}
	if bad {
		return k, fmt.Errorf("object id %q is not 64 lower-case hexadecimal digits: %w", id, ErrBadMeta)
	}
	return k, nil
}

// header is the first block of a presence file. It is written once; a file
// with another header is another file.
type header struct {
	key   key
	epoch uint64 // random; slots of another epoch do not count
	size  int64  // of the object
	inode uint64 // of the data file
	birth int64  // of the data file, 0 where it is not recorded
}

// slot is one version of one page of a presence file.
type slot struct {
	key   key
	epoch uint64
	page  int64
	seq   uint64 // the larger of a pair is the newer
	bits  [bitmapSize]byte
}

var (
	errMagic    = errors.New("no magic number")
	errChecksum = errors.New("wrong checksum")
	errReserved = errors.New("reserved bytes are not zero")
)

// sealBlock fills in what headers and slots share and the checksum over all.
func sealBlock(b []byte, magic [8]byte, k key, epoch uint64) {
	copy(b, magic[:])
	binary.LittleEndian.PutUint32(b[8:], presenceVersion)
	copy(b[16:], k[:])
	binary.LittleEndian.PutUint64(b[48:], epoch)
	binary.LittleEndian.PutUint32(b[12:], blockSum(b))
}

// blockSum is the CRC-32C of a block, with its own field taken as zero.
func blockSum(b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, b[:12])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, b[16:])
}

// openBlock is sealBlock's inverse. The magic number, the version and the
// checksum have the same place in every later version, so a block that is
// whole and newer is told from one that is damaged.
func openBlock(b []byte, magic [8]byte) (k key, epoch uint64, err error) {
	if len(b) != slotSize || [8]byte(b[:8]) != magic {
		return k, 0, errMagic
	}
	if binary.LittleEndian.Uint32(b[12:]) != blockSum(b) {
		return k, 0, errChecksum
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > presenceVersion {
		return k, 0, &VersionError{Version: uint64(v), Known: presenceVersion}
	} else if v != presenceVersion {
		return k, 0, fmt.Errorf("unknown format version %d", v)
	}
	copy(k[:], b[16:])
	return k, binary.LittleEndian.Uint64(b[48:]), nil
}

func (h header) encode() []byte {
	b := make([]byte, slotSize)
	binary.LittleEndian.PutUint64(b[56:], uint64(h.size))
	binary.LittleEndian.PutUint64(b[64:], h.inode)
	binary.LittleEndian.PutUint64(b[72:], uint64(h.birth))
	sealBlock(b, headerMagic, h.key, h.epoch)
	return b
}

func parseHeader(b []byte) (header, error) {
	k, epoch, err := openBlock(b, headerMagic)
	if err != nil {
		return header{}, err
	}
	if !allZero(b[80:]) {
		return header{}, errReserved
	}
	return header{
		key: k, epoch: epoch,
		size:  int64(binary.LittleEndian.Uint64(b[56:])),
		inode: binary.LittleEndian.Uint64(b[64:]),
		birth: int64(binary.LittleEndian.Uint64(b[72:])),
	}, nil
}

func (s *slot) encode() []byte {
	b := make([]byte, slotSize)
	binary.LittleEndian.PutUint64(b[56:], uint64(s.page))
	binary.LittleEndian.PutUint64(b[64:], s.seq)
	copy(b[slotHead:], s.bits[:])
	sealBlock(b, slotMagic, s.key, s.epoch)
	return b
}

// parseSlot reads the slot of a page of the presence file with header h.
func parseSlot(b []byte, h header, page int64) (*slot, error) {
	k, epoch, err := openBlock(b, slotMagic)
	if err != nil {
		return nil, err
	}
	s := &slot{
		key: k, epoch: epoch,
		page: int64(binary.LittleEndian.Uint64(b[56:])),
		seq:  binary.LittleEndian.Uint64(b[64:]),
		bits: [bitmapSize]byte(b[slotHead:]),
	}
	switch {
	case !allZero(b[72:slotHead]):
		return nil, errReserved
	case k != h.key:
		return nil, errors.New("it is of another object")
	case epoch != h.epoch:
		return nil, errors.New("it is of another presence file")
	case s.page != page:
		return nil, fmt.Errorf("it is of page %d", s.page)
	case s.seq == 0:
		return nil, errors.New("sequence number is zero")
	}
	left := ondemand.BlockCount(h.size) - page*pageBlocks
	if last := s.lastBlock(); last >= left {
		return nil, fmt.Errorf("it claims block %d of a page of %d", last, left)
	}
	return s, nil
}

// lastBlock is the last block of the page that the slot claims, or -1.
func (s *slot) lastBlock() int64 {
	for i := len(s.bits) - 1; i >= 0; i-- {
		if s.bits[i] != 0 {
			return int64(i)*8 + int64(bits.Len8(s.bits[i])) - 1
		}
	}
	return -1
}

// claimsBeyond tells whether s claims a block that other does not.
func (s *slot) claimsBeyond(other *slot) bool {
	for i, v := range s.bits {
		if v&^other.bits[i] != 0 {
			return true
		}
	}
	return false
}

// set claims the blocks [first, last) of the page.
func (s *slot) set(first, last int64) {
	for first < last {
		if first%8 == 0 && last-first >= 8 {
			s.bits[first/8] = 0xff
			first += 8
			continue
		}
		s.bits[first/8] |= 1 << (first % 8)
		first++
	}
}

// runs calls yield with each run of blocks [first, last) that the slot claims.
func (s *slot) runs(yield func(first, last int64)) {
	start := int64(-1)
	for b := int64(0); b < pageBlocks; b++ {
		v := s.bits[b/8]
		if b%8 == 0 && ((v == 0 && start < 0) || (v == 0xff && start >= 0)) {
			b += 7
			continue
		}
		switch on := v&(1<<(b%8)) != 0; {
		case on && start < 0:
			start = b
		case !on && start >= 0:
			yield(start, b)
			start = -1
		}
	}
	if start >= 0 {
		yield(start, pageBlocks)
	}
}

// pageCount is the number of pages of the map of an object of size bytes.
func pageCount(size int64) int64 {
	return (ondemand.BlockCount(size) + pageBlocks - 1) / pageBlocks
}

// slotOffset is where a page's slot, 0 or 1, lies in the presence file.
func slotOffset(page int64, which int) int64 {
	return slotSize * (1 + 2*page + int64(which))
}

// pageRange is the bytes of the object that a page covers.
func pageRange(page, size int64) ondemand.Range {
	off := page * pageBytes
	return ondemand.Range{Off: off, Len: min(pageBytes, size-off)}
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
