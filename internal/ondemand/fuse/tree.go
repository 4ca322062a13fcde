package fuse

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Device is what the data of files lie in.
type Device struct {
	// Object tells what is present.
	Object ondemand.Object
	// Data are its bytes. Only what is present is read.
	Data io.ReaderAt
}

// Tree is what a connection shows. It may be used concurrently.
type Tree struct {
	image   *erofs.Reader
	devices []Device
	inodes  uint64
	blocks  uint64 // of the devices and the image, for statfs(2)
}

// NewTree shows image, whose devices are given in the order of its device table.
func NewTree(image *erofs.Reader, devices []Device) (*Tree, error) {
	if have := len(image.Devices()); have != len(devices) {
		return nil, fmt.Errorf("show filesystem image: it has %d devices, not %d", have, len(devices))
	}
	info := image.Info()
	t := &Tree{image: image, devices: devices, inodes: info.Inodes, blocks: info.Blocks}
	for i, d := range image.Devices() {
		if size := devices[i].Object.Size(); uint64(size) > d.Blocks*erofs.BlockSize {
			return nil, fmt.Errorf("show filesystem image: device %d has %d bytes, not %d blocks", i+1, size, d.Blocks)
		}
		t.blocks += d.Blocks
	}
	return t, nil
}

// rootID is the root directory's node id, whatever its inode number (FUSE_ROOT_ID).
const rootID = 1

// number is the inode number of a node id. All but the root's are the same; an inode
// number of rootID would lie in the superblock.
func (t *Tree) number(node uint64) uint64 {
	if node == rootID {
		return t.image.Root()
	}
	return node
}

func (t *Tree) node(id uint64) (*erofs.Node, error) { return t.image.Node(t.number(id)) }

// idOf is the reverse of number.
func (t *Tree) idOf(number uint64) uint64 {
	if number == t.image.Root() {
		return rootID
	}
	return number
}

// part is a run of a file's bytes in a device; device is negative where they are zeros.
type part struct {
	device int
	r      ondemand.Range
}

// locate tells where the bytes [off, off+n) of a file lie, as far as it has them.
func (t *Tree) locate(id uint64, off, n int64) ([]part, error) {
	node, err := t.node(id)
	if err != nil {
		return nil, err
	}
	if node.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, fmt.Errorf("read inode %d: %w", node.NID, syscall.EISDIR)
	}
	if n = min(n, node.Size-off); n <= 0 {
		return nil, nil
	}
	extents, err := t.image.Extents(node)
	if err != nil {
		return nil, err
	}
	var parts []part
	for _, e := range extents {
		from, to := max(off, e.Start), min(off+n, e.Start+e.Length)
		if from >= to {
			continue
		}
		device := e.Device
		switch {
		case device == erofs.Primary:
			return nil, fmt.Errorf("read inode %d: its data lie in the image: %w", node.NID, errors.ErrUnsupported)
		case device == erofs.Hole:
			device = -1
		}
		parts = append(parts, part{device: device, r: ondemand.Range{Off: e.Offset + from - e.Start, Len: to - from}})
	}
	return parts, nil
}

// missing are the parts of which a block is missing, widened to blocks.
func (t *Tree) missing(parts []part) (lack []part) {
	for _, p := range parts {
		if p.device < 0 {
			continue
		}
		o := t.devices[p.device].Object
		if r := p.r.Blocks(o.Size()); !o.Has(r) {
			lack = append(lack, part{device: p.device, r: r})
		}
	}
	return lack
}

// read reads parts, all present, into p, and tells how many bytes they have.
func (t *Tree) read(parts []part, p []byte) (int, error) {
	n := 0
	for _, part := range parts {
		q := p[n:][:part.r.Len]
		if part.device < 0 {
			clear(q)
		} else if m, err := t.devices[part.device].Data.ReadAt(q, part.r.Off); m < len(q) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read device %d at %d: %w", part.device+1, part.r.Off, err)
		}
		n += len(q)
	}
	return n, nil
}

// errnoOf is what a system call gets that failed with err.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, erofs.ErrCorrupt):
		return syscall.EUCLEAN // EFSCORRUPTED, as the kernel's EROFS has it
	case errors.As(err, &errno):
		return errno
	}
	return syscall.EIO
}
