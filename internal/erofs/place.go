package erofs

import "math/bits"

// layout is where everything lies.
type layout struct {
	*tree
	deviceTable uint64 // byte position
	xattrBlock  uint32
	dataBlock   uint32 // first block of what does not fit behind its inode
	blocks      uint32 // of the image
	deviceStart []uint32
}

// place gives everything in the tree its place.
func place(t *tree) (*layout, error) {
	l := &layout{tree: t}
	t.xattrs.share()
	pos := uint64(superOffset + superSize)
	pos, err := l.placeInode(0, pos)
	if err != nil {
		return nil, err
	}
	// The root comes first because its number has 16 bits, the table next because
	// its position has 23.
	if len(t.img.Devices) > 0 {
		l.deviceTable = align(pos, deviceSize)
		pos = l.deviceTable + deviceSize*uint64(len(t.img.Devices))
	}
	for i := range t.nodes[1:] {
		if pos, err = l.placeInode(i+1, pos); err != nil {
			return nil, err
		}
	}
	pos = align(pos, BlockSize)
	l.xattrBlock = uint32(pos / BlockSize)
	pos = align(pos+uint64(t.xattrs.bytes), BlockSize)
	l.dataBlock = uint32(pos / BlockSize)
	total := pos / BlockSize
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.blocks > 0 {
			n.block = uint32(total)
			total += uint64(n.blocks)
		}
		if total > maxBlocks {
			return nil, tooManyBlocks()
		}
	}
	l.blocks = uint32(total)
	for _, d := range t.img.Devices {
		l.deviceStart = append(l.deviceStart, uint32(total))
		if total += d.Blocks; total > maxBlocks {
			return nil, tooManyBlocks()
		}
	}
	return l, nil
}

// placeInode puts node i at pos or soon after it, and returns where it ends.
func (l *layout) placeInode(i int, pos uint64) (uint64, error) {
	n := &l.nodes[i]
	tail := uint64(0) // bytes that would like to lie behind the inode
	switch n.in.Mode & typeMask {
	case typeDir:
		n.size, n.blocks = dirSize(l.entries[n.first : n.first+n.count])
		tail = n.size % BlockSize
	case typeSymlink:
		n.size, n.blocks = uint64(len(n.in.Link)), 1
		tail = n.size
	}
	if len(n.xattrs) > 0 {
		_, _, size := l.xattrs.split(n.xattrs)
		if size > maxXattrBody {
			return 0, l.fail(n.parent, n.name, invalid("xattrs need %d bytes, %d are possible", size, maxXattrBody))
		}
		n.bodySize = uint32(size)
	}
	n.compact = l.canBeCompact(n)
	head := uint64(extendedSize)
	if n.compact {
		head = compactSize
	}
	whole := head + uint64(n.bodySize) + tail
	if n.inline = tail > 0 && whole <= BlockSize; n.inline {
		n.blocks--
		// What follows an inode stays in its block: the kernel takes a symlink
		// from the block in which the inode ends, and refuses inline data that
		// pass the end of a block (erofs_fill_symlink, erofs_map_blocks_flatmode).
		head = whole
	} else {
		whole = head + uint64(n.bodySize)
	}
	pos = align(pos, slotSize)
	if pos%BlockSize+head > BlockSize {
		pos = align(pos, BlockSize)
	}
	n.pos = pos
	pos += whole
	if n.in.Mode&typeMask == typeRegular && n.in.Size > 0 {
		pos = align(pos, chunkSize) + chunkSize*chunkCount(n.in.Size)
	}
	return pos, nil
}

// chunkExponent is log2 of the blocks of a chunk of a file: one chunk is all of
// it, but for files of more than 8 TiB.
func chunkExponent(size int64) uint32 {
	return min(uint32(bits.Len64(uint64(size-1)>>blockBits)), chunkBitsMask)
}

// chunkCount is how many chunks a file that is not empty has.
func chunkCount(size int64) uint64 {
	return uint64(size-1)>>(blockBits+chunkExponent(size)) + 1
}

// canBeCompact tells whether the 32 bytes of a compact inode hold all of n.
func (l *layout) canBeCompact(n *node) bool {
	size := n.size
	if n.in.Mode&typeMask == typeRegular {
		size = uint64(n.in.Size)
	}
	return n.in.Sec == l.sec && n.in.Nsec == l.nsec && size <= 1<<32-1 &&
		n.in.UID <= 1<<16-1 && n.in.GID <= 1<<16-1 && n.nlink <= 1<<16-1
}

// dirSize is the length of a directory with those entries, and how many blocks
// that is.
func dirSize(entries []dirent) (size uint64, blocks uint32) {
	for len(entries) > 0 {
		n, used := fillBlock(entries)
		entries = entries[n:]
		size = uint64(blocks)*BlockSize + uint64(used)
		blocks++
	}
	return size, blocks
}

// fillBlock tells how many of entries, at least one, fit into a block, and
// how many bytes of it they take.
func fillBlock(entries []dirent) (n, used int) {
	for n < len(entries) {
		more := direntSize + len(entries[n].name)
		if used+more > BlockSize {
			break
		}
		used += more
		n++
	}
	return n, used
}
