package erofs

import "fmt"

// What Extent.Device says besides the index of a device.
const (
	// Primary: the bytes lie in the image itself. Write makes no such files.
	Primary = -1
	// Hole: the bytes are zeros and lie nowhere. Nor such.
	Hole = -2
)

// Extent is a run of a file's bytes.
type Extent struct {
	// Start is where in the file it begins, Length how many bytes it has.
	Start, Length int64
	// Device is the index of the device, Primary or Hole; Offset is where in it
	// the bytes lie.
	Device int
	Offset int64
}

// Extents tells where the bytes of a regular file lie, in the file's order and
// without gaps. Neighbours are one extent.
func (r *Reader) Extents(n *Node) ([]Extent, error) {
	if n.Mode&typeMask != typeRegular {
		return nil, fmt.Errorf("find the data of inode %d: it is not a regular file", n.NID)
	}
	var x []Extent
	var err error
	switch {
	case n.raw.size == 0:
	case n.raw.layout == layoutChunks:
		x, err = r.chunks(n)
	default:
		x, err = r.flat(n)
	}
	if err != nil {
		return nil, fmt.Errorf("find the data of inode %d: %w", n.NID, err)
	}
	return x, nil
}

// locate finds [block, block+blocks) of the common address space.
func (r *Reader) locate(block, blocks uint64) (device int, offset int64, err error) {
	end := block + blocks
	if end <= uint64(r.super.blocks) {
		return Primary, int64(block * BlockSize), nil
	}
	for i, start := range r.starts {
		if start > 0 && block >= start && end <= start+r.devices[i].Blocks {
			return i, int64((block - start) * BlockSize), nil
		}
	}
	return 0, 0, corrupt("data in blocks [%d,+%d), where there is no device", block, blocks)
}

func (r *Reader) flat(n *Node) ([]Extent, error) {
	var x []Extent
	tail := n.tail()
	whole := n.raw.size - tail
	if whole > 0 {
		device, offset, err := r.locate(uint64(n.raw.union), (whole-1)/BlockSize+1)
		if err != nil {
			return nil, err
		}
		x = append(x, Extent{Length: int64(whole), Device: device, Offset: offset})
	}
	if tail > 0 {
		if n.end%BlockSize+tail > BlockSize || n.end+tail > r.size {
			return nil, corrupt("inline data pass the end of a block")
		}
		x = appendExtent(x, Extent{Start: int64(whole), Length: int64(tail), Device: Primary, Offset: int64(n.end)})
	}
	return x, nil
}

// chunkBits is log2 of the size of a chunk.
func (n *Node) chunkBits() uint32 { return blockBits + n.raw.union&chunkBitsMask }

// chunkIndex is how many chunks a file has, and how many bytes the index needs
// for each.
func (n *Node) chunkIndex() (count, width uint64) {
	if n.raw.size > 0 {
		count = (n.raw.size-1)>>n.chunkBits() + 1
	}
	if n.raw.union&chunkIndexes != 0 {
		return count, 8
	}
	return count, 4
}

// chunks reads the chunk index, which lies behind inode and xattrs.
func (r *Reader) chunks(n *Node) ([]Extent, error) {
	format := n.raw.union & 0xffff
	if format&^(chunkBitsMask|chunkIndexes) != 0 {
		return nil, unsupported("chunk format %#x", format)
	}
	count, width := n.chunkIndex()
	chunkBits := n.chunkBits()
	// Aligned to its own size (erofs_map_blocks of fs/erofs/data.c, Linux 5.19).
	pos := align(n.end, width)
	if pos > r.size || count > (r.size-pos)/width {
		return nil, corrupt("index of %d chunks passes the end of the image", count)
	}
	index, err := r.read(pos, int(count*width))
	if err != nil {
		return nil, err
	}
	var x []Extent
	for i := range count {
		e := Extent{Start: int64(i << chunkBits), Device: Hole}
		e.Length = min(int64(1)<<chunkBits, int64(n.raw.size)-e.Start)
		entry := index[i*width:][:width]
		if err := r.chunk(&e, entry); err != nil {
			return nil, err
		}
		x = appendExtent(x, e)
	}
	return x, nil
}

// chunk sets from an index entry where e lies.
func (r *Reader) chunk(e *Extent, entry []byte) error {
	block, device := uint64(le.Uint32(entry[len(entry)-4:])), 0
	if len(entry) == 8 {
		device = int(le.Uint16(entry[2:]))
	}
	blocks := uint64(e.Length-1)/BlockSize + 1
	switch {
	case block == noBlock:
		return nil
	case device == 0:
		var err error
		e.Device, e.Offset, err = r.locate(block, blocks)
		return err
	case device > len(r.devices):
		return corrupt("data on device %d of %d", device, len(r.devices))
	case block+blocks > r.devices[device-1].Blocks && !r.unmeasured(device-1):
		return corrupt("data [%d,+%d) pass the end %d of device %d, in blocks", block, blocks, r.devices[device-1].Blocks, device-1)
	}
	e.Device, e.Offset = device-1, int64(block*BlockSize)
	return nil
}

// unmeasured tells whether the image does not say how long a device is, as
// mkfs.erofs 1.5 does not.
func (r *Reader) unmeasured(device int) bool {
	return r.devices[device].Blocks == 0 && r.starts[device] == 0
}

// appendExtent appends e, or makes the last extent longer.
func appendExtent(x []Extent, e Extent) []Extent {
	if len(x) > 0 {
		last := &x[len(x)-1]
		if last.Device == e.Device && (e.Device == Hole || last.Offset+last.Length == e.Offset) {
			last.Length += e.Length
			return x
		}
	}
	return append(x, e)
}
