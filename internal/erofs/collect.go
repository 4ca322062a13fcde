package erofs

import (
	"slices"
	"strings"
)

// node is an inode of the tree that is written.
type node struct {
	in     *Inode
	parent int32  // the directory with its first name
	name   string // that name
	nlink  uint32
	xattrs []int32 // records, nil where there are none

	// Of a directory: its entries are tree.entries[first:first+count].
	first, count int

	// What place has found.
	pos      uint64 // byte position of the inode
	block    uint32 // first of its blocks behind the inodes
	blocks   uint32 // how many
	bodySize uint32 // bytes of xattrs
	size     uint64 // i_size of a directory
	compact  bool
	inline   bool
}

// dirent is a name in a directory, "." and ".." included.
type dirent struct {
	name string
	node int32
}

// tree is a tree in the order in which it is written: the root, then for each
// directory all its children, sorted, before those of the next. A directory's
// inodes lie together, so that reading it and asking for all its files goes
// through the image from front to back.
type tree struct {
	img     *Image
	nodes   []node
	entries []dirent
	xattrs  xattrTable
	sec     int64 // build time, which compact inodes have
	nsec    uint32
}

// collect reads and checks the whole tree below img.Root.
func collect(img *Image) (*tree, error) {
	t := &tree{img: img}
	if err := t.checkDevices(); err != nil {
		return nil, err
	}
	if img.Root == nil || img.Root.Mode&typeMask != typeDir {
		return nil, &EntryError{Path: "/", Err: invalid("root is not a directory")}
	}
	numbers := make(map[*Inode]int32)
	if err := t.add(img.Root, dirent{}, numbers); err != nil {
		return nil, err
	}
	t.nodes[0].nlink = 2
	for stack := []int32{0}; len(stack) > 0; {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := t.children(dir, numbers); err != nil {
			return nil, err
		}
		found := len(stack)
		d := &t.nodes[dir]
		for _, e := range t.entries[d.first : d.first+d.count] {
			if e.node > dir && t.nodes[e.node].in.Mode&typeMask == typeDir && t.nodes[e.node].parent == dir {
				stack = append(stack, e.node)
			}
		}
		slices.Reverse(stack[found:])
	}
	t.chooseTime()
	return t, nil
}

func (t *tree) checkDevices() error {
	if n := len(t.img.Devices); n > MaxDevices {
		return invalid("%d devices, %d are possible", n, MaxDevices)
	}
	total := uint64(0)
	for i, d := range t.img.Devices {
		switch {
		case d.Tag == "" || len(d.Tag) > MaxTag || strings.IndexByte(d.Tag, 0) >= 0:
			return invalid("tag %q of device %d does not have 1 to %d bytes without NUL", d.Tag, i, MaxTag)
		case d.Blocks > maxBlocks-total:
			return tooManyBlocks()
		}
		total += d.Blocks
	}
	return nil
}

func tooManyBlocks() error {
	return invalid("image and devices have more than %d blocks of %d bytes together, which is what addresses of 32 bits reach",
		maxBlocks, BlockSize)
}

// children sorts and numbers the names in a directory.
func (t *tree) children(dir int32, numbers map[*Inode]int32) error {
	in := t.nodes[dir].in
	first := len(t.entries)
	parent := t.nodes[dir].parent
	t.nodes = grow(t.nodes, len(in.Children))
	t.entries = grow(t.entries, len(in.Children)+2)
	t.entries = append(t.entries, dirent{".", dir}, dirent{"..", parent})
	for _, c := range in.Children {
		t.entries = append(t.entries, dirent{c.Name, -1})
	}
	// The kernel searches names by halves, bytewise (erofs_dirnamecmp of
	// fs/erofs/namei.c); "." and ".." stand where they sort.
	children := slices.Clone(in.Children)
	byName := func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(children, byName) {
		slices.SortFunc(children, byName)
	}
	// Numbers go by the order of names, whatever the order of in.Children.
	for i, c := range children {
		e := &t.entries[first+2+i]
		e.name = c.Name
		if what := checkName(c.Name); what != "" {
			return t.fail(dir, c.Name, invalid("%s", what))
		}
		if i > 0 && children[i-1].Name == c.Name {
			return t.fail(dir, c.Name, invalid("name is there twice"))
		}
		n, err := t.number(c, dir, numbers)
		if err != nil {
			return err
		}
		e.node = n
	}
	slices.SortFunc(t.entries[first:], func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	t.nodes[dir].first, t.nodes[dir].count = first, len(t.entries)-first
	return nil
}

// grow makes room for n more, and at least doubles what there is: append grows
// large slices by a quarter, and copies all of a large tree that much more often.
func grow[T any](s []T, n int) []T {
	if n <= cap(s)-len(s) {
		return s
	}
	return slices.Grow(s, max(n, len(s)))
}

// number returns the number of a child of dir, and counts the link.
func (t *tree) number(c Dirent, dir int32, numbers map[*Inode]int32) (int32, error) {
	if c.Inode == nil {
		return 0, t.fail(dir, c.Name, invalid("no inode"))
	}
	n, seen := numbers[c.Inode]
	isDir := c.Inode.Mode&typeMask == typeDir
	switch {
	case seen && isDir:
		return 0, t.fail(dir, c.Name, invalid("directory has two names, or contains itself"))
	case !seen:
		n = int32(len(t.nodes))
		if err := t.add(c.Inode, dirent{c.Name, dir}, numbers); err != nil {
			return 0, err
		}
	}
	if isDir {
		t.nodes[n].nlink = 2
		t.nodes[dir].nlink++
	} else {
		t.nodes[n].nlink++
	}
	return n, nil
}

// add checks an inode and appends it; at is its name and directory.
func (t *tree) add(in *Inode, at dirent, numbers map[*Inode]int32) error {
	if err := checkInode(in, t.img.Devices); err != nil {
		return t.fail(at.node, at.name, err)
	}
	n := node{in: in, parent: at.node, name: at.name}
	if len(in.Xattrs) > 0 {
		ids, err := t.xattrs.add(in.Xattrs)
		if err != nil {
			return t.fail(at.node, at.name, err)
		}
		n.xattrs = ids
	}
	numbers[in] = int32(len(t.nodes))
	t.nodes = append(t.nodes, n)
	return nil
}

// fail says which entry err is about.
func (t *tree) fail(dir int32, name string, err error) error {
	names := []string{name}
	for ; dir > 0; dir = t.nodes[dir].parent {
		names = append(names, t.nodes[dir].name)
	}
	return &EntryError{Path: pathOf(names), Err: err}
}

func checkInode(in *Inode, devices []Device) error {
	kind := in.Mode & typeMask
	switch {
	case in.Mode > 0xffff || direntType(in.Mode) == 0:
		return invalid("mode %#o has no file type that there is", in.Mode)
	case in.Nsec > 999_999_999:
		return invalid("%d nanoseconds are a second or more", in.Nsec)
	case kind != typeDir && len(in.Children) > 0:
		return invalid("what is not a directory has children")
	case kind != typeSymlink && in.Link != "":
		return invalid("what is not a symlink has a target")
	}
	switch kind {
	case typeRegular:
		return checkData(in, devices)
	case typeSymlink:
		if in.Link == "" || len(in.Link) > MaxLink || strings.IndexByte(in.Link, 0) >= 0 {
			return invalid("target of %d bytes: a symlink has 1 to %d bytes without NUL", len(in.Link), MaxLink)
		}
	case typeChar, typeBlock:
		if in.Rdev.Major > MaxMajor || in.Rdev.Minor > MaxMinor {
			return invalid("device number %d:%d, up to %d:%d are possible", in.Rdev.Major, in.Rdev.Minor, MaxMajor, MaxMinor)
		}
	}
	return nil
}

func checkData(in *Inode, devices []Device) error {
	switch {
	case in.Size < 0:
		return invalid("size is %d", in.Size)
	case in.Size == 0:
		return nil
	case in.Device < 0 || in.Device >= len(devices):
		return invalid("data on device %d of %d", in.Device, len(devices))
	case in.Offset < 0 || in.Offset%BlockSize != 0:
		return invalid("data at %d: not a multiple of %d", in.Offset, BlockSize)
	}
	length := devices[in.Device].Blocks * BlockSize
	if uint64(in.Offset) > length || uint64(in.Size) > length-uint64(in.Offset) {
		return invalid("data [%d,+%d) pass the end %d of device %d", in.Offset, in.Size, length, in.Device)
	}
	return nil
}

// chooseTime takes as build time the one that more than half of the inodes
// have, where there is one: they can be compact then. It is the majority vote
// of Boyer and Moore, which needs no table of times.
func (t *tree) chooseTime() {
	votes := 0
	for i := range t.nodes {
		in := t.nodes[i].in
		switch {
		case in.Sec == t.sec && in.Nsec == t.nsec:
			votes++
		case votes == 0:
			t.sec, t.nsec, votes = in.Sec, in.Nsec, 1
		default:
			votes--
		}
	}
}
