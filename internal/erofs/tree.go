package erofs

import (
	"fmt"
	"io"
)

// Tree reads the whole image. Of what it returns Write makes the same bytes again,
// where Write made the image. ErrNotSupported, with an EntryError, says
// that a file's data are not one run of blocks of a device.
//
// The memory that it takes is in proportion to the size of the image, also
// where the image lies: no byte of it is taken for two things.
func (r *Reader) Tree() (*Image, error) {
	// A window of its own, so that what lies together is read together.
	own := *r
	own.src = &window{src: r.src, size: int64(r.size)}
	w := &walk{r: &own, seen: make(map[uint64]*seen), shared: make(map[uint32]Xattr)}
	root, err := w.all()
	if err != nil {
		return nil, fmt.Errorf("read filesystem image: %w", err)
	}
	return &Image{Root: root, Devices: r.Devices()}, nil
}

// seen is an inode that the walk has met.
type seen struct {
	inode *Inode
	node  *Node
	links uint32
	// Where it was met first.
	parent *seen
	name   string
}

func (s *seen) path(name string) string {
	names := []string{name}
	for ; s.parent != nil; s = s.parent {
		names = append(names, s.name)
	}
	return pathOf(names)
}

// walk is one reading of a whole image.
type walk struct {
	r      *Reader
	seen   map[uint64]*seen
	shared map[uint32]Xattr
	// claimed is how many bytes of the image the inodes have needed so far.
	claimed uint64
}

// claim says that n more bytes are taken. In an honest image no two things
// have the same bytes, so that their sum is at most its size.
func (w *walk) claim(n uint64) error {
	if n > w.r.size-w.claimed {
		return corrupt("what it has overlaps")
	}
	w.claimed += n
	return nil
}

func (w *walk) all() (*Inode, error) {
	root, err := w.inode(w.r.Root())
	if err != nil {
		return nil, &EntryError{Path: "/", Err: err}
	}
	if root.inode.Mode&typeMask != typeDir {
		return nil, &EntryError{Path: "/", Err: corrupt("root is not a directory")}
	}
	root.links = 2
	for stack := []*seen{root}; len(stack) > 0; {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		found, err := w.children(dir)
		if err != nil {
			return nil, err
		}
		stack = append(stack, found...)
	}
	for _, s := range w.seen {
		if s.links != s.node.Nlink {
			return nil, corrupt("inode %d has %d links, and says %d", s.node.NID, s.links, s.node.Nlink)
		}
	}
	if n := uint64(len(w.seen)); n != w.r.super.inodes {
		return nil, corrupt("%d inodes, and the superblock says %d", n, w.r.super.inodes)
	}
	return root.inode, nil
}

// children reads a directory, and returns the directories in it.
func (w *walk) children(dir *seen) (dirs []*seen, err error) {
	fail := func(name string, err error) ([]*seen, error) {
		return nil, &EntryError{Path: dir.path(name), Err: err}
	}
	content, err := w.r.readDir(dir.node)
	if err != nil {
		return fail("", err)
	}
	parent := dir
	if dir.parent != nil {
		parent = dir.parent
	}
	if content.parent != parent.node.NID {
		return fail("", corrupt("\"..\" is inode %d", content.parent))
	}
	if len(content.entries) > 0 {
		dir.inode.Children = make([]Dirent, 0, len(content.entries))
	}
	for _, e := range content.entries {
		s, known := w.seen[e.NID]
		if !known {
			if s, err = w.inode(e.NID); err != nil {
				return fail(e.Name, err)
			}
			s.parent, s.name = dir, e.Name
		}
		isDir := s.inode.Mode&typeMask == typeDir
		switch {
		case s.inode.Mode&typeMask != e.Type:
			return fail(e.Name, corrupt("type %#o in the directory, %#o in the inode", e.Type, s.inode.Mode))
		case isDir && known:
			return fail(e.Name, corrupt("directory has two names, or contains itself"))
		case isDir:
			s.links = 2
			dir.links++
			dirs = append(dirs, s)
		default:
			s.links++
		}
		dir.inode.Children = append(dir.inode.Children, Dirent{Name: e.Name, Inode: s.inode})
	}
	return dirs, nil
}

// inode reads an inode with all but its children.
func (w *walk) inode(nid uint64) (*seen, error) {
	n, err := w.r.node(nid)
	if err != nil {
		return nil, err
	}
	in := n.Inode
	kind := n.Mode & typeMask
	if err := w.claim(n.metadataBytes()); err != nil {
		return nil, err
	}
	if in.Xattrs, err = w.r.xattrs(n, w.sharedXattr); err != nil {
		return nil, err
	}
	switch kind {
	case typeSymlink:
		in.Link, err = w.r.Link(n)
	case typeRegular:
		err = w.data(n, &in)
	}
	if err != nil {
		return nil, err
	}
	s := &seen{inode: &in, node: n}
	w.seen[nid] = s
	return s, nil
}

// sharedXattr reads each shared xattr once.
func (w *walk) sharedXattr(id uint32) (Xattr, error) {
	if x, known := w.shared[id]; known {
		return x, nil
	}
	x, err := w.r.sharedXattr(id)
	if err != nil {
		return Xattr{}, err
	}
	if err := w.claim(uint64(4 + len(x.Value))); err != nil {
		return Xattr{}, err
	}
	w.shared[id] = x
	return x, nil
}

// data sets where the bytes of a regular file lie.
func (w *walk) data(n *Node, in *Inode) error {
	if in.Size == 0 {
		return nil
	}
	x, err := w.r.Extents(n)
	switch {
	case err != nil:
		return err
	case len(x) > 1:
		return unsupported("data in %d pieces", len(x))
	case x[0].Device < 0:
		return unsupported("data not on a device")
	}
	in.Device, in.Offset = x[0].Device, x[0].Offset
	return nil
}

// window reads through a part of the image that is kept in memory.
type window struct {
	src   io.ReaderAt
	size  int64
	start int64
	data  []byte
	buf   [64 << 10]byte
}

func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > len(w.buf)/2 {
		return w.src.ReadAt(p, off)
	}
	if off < w.start || off+int64(len(p)) > w.start+int64(len(w.data)) {
		w.start = off &^ (BlockSize - 1)
		n, err := w.src.ReadAt(w.buf[:min(int64(len(w.buf)), w.size-w.start)], w.start)
		w.data = w.buf[:n]
		if int64(n) < off-w.start+int64(len(p)) {
			w.data = nil
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	return copy(p, w.data[off-w.start:]), nil
}
