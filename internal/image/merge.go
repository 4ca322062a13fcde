package image

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/toc"
)

// node is a name's inode while layers are merged. Hard links share one.
type node struct {
	inode    *erofs.Inode
	children map[string]*node // of a directory
}

func (n *node) isDir() bool { return n.children != nil }

// newDirectory is a directory that no layer describes.
func newDirectory() *node {
	return &node{
		inode:    &erofs.Inode{Mode: syscall.S_IFDIR | 0o755},
		children: make(map[string]*node),
	}
}

// finish puts the children into the inodes, and counts names of no directory.
func (n *node) finish(files *int) *erofs.Inode {
	n.inode.Children = make([]erofs.Dirent, 0, len(n.children))
	for name, c := range n.children {
		inode := c.inode
		if c.isDir() {
			inode = c.finish(files)
		} else {
			*files++
		}
		n.inode.Children = append(n.inode.Children, erofs.Dirent{Name: name, Inode: inode})
	}
	return n.inode
}

// merger applies one layer after the other to root.
type merger struct {
	root   *node
	out    *Filesystem
	device int // index of the layer's device
}

// apply changes the tree as a layer says. What hides something hides it in the
// layers below, wherever in the layer it stands; links come last, because their
// targets may come behind them.
func (m *merger) apply(t *toc.TOC) error {
	targets := targetsOf(t)
	hidden := m.linksBelow(t, targets, func(link, target int) bool { return true })
	var dirs []*toc.Entry
	for i := range t.Entries {
		m.hide(&t.Entries[i])
		if t.Entries[i].Type == toc.Directory {
			dirs = append(dirs, &t.Entries[i])
		}
	}
	// A target that stands behind its link is not there yet when layers are
	// unpacked in order: the link is to what it replaces.
	before := m.linksBelow(t, targets, func(link, target int) bool { return link < target })
	// The outer before the inner: one may take the place of what is no directory.
	slices.SortFunc(dirs, func(a, b *toc.Entry) int { return strings.Compare(a.Name, b.Name) })
	for _, e := range dirs {
		if err := m.addDirectory(e); err != nil {
			return err
		}
	}
	places := t.Places()
	for i := range t.Entries {
		if err := m.add(&t.Entries[i], places[i]); err != nil {
			return err
		}
	}
	// A target that is a link stands behind its links: the last comes first of these.
	var late []int
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != toc.Hardlink {
			continue
		}
		if to := targets[e.Link]; before[i] == nil && to >= 0 && t.Entries[to].Type == toc.Hardlink {
			late = append(late, i)
			continue
		}
		if err := m.link(e, before[i], hidden[i]); err != nil {
			return err
		}
	}
	for _, i := range slices.Backward(late) {
		if err := m.link(&t.Entries[i], nil, hidden[i]); err != nil {
			return err
		}
	}
	return nil
}

// targetsOf has what t's hard links name, with its index in t, -1: it is not there.
func targetsOf(t *toc.TOC) map[string]int {
	targets := make(map[string]int)
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == toc.Hardlink {
			targets[e.Link] = -1
		}
	}
	if len(targets) == 0 {
		return nil
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type == toc.Whiteout || e.Type == toc.Opaque || e.Type == toc.Replaced {
			continue
		}
		if _, ok := targets[e.Name]; ok {
			targets[e.Name] = i
		}
	}
	return targets
}

// linksBelow are the files of lower layers that t's hard links name, as far as
// want is true for the indices of the link and of its target in t, -1: none.
func (m *merger) linksBelow(t *toc.TOC, targets map[string]int, want func(link, target int) bool) map[int]*node {
	if len(targets) == 0 {
		return nil
	}
	below := make(map[int]*node)
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != toc.Hardlink || !want(i, targets[e.Link]) {
			continue
		}
		if n := m.find(e.Link); n != nil && !n.isDir() {
			below[i] = n
		}
	}
	return below
}

// hide removes what a whiteout or an opaque marker is about.
func (m *merger) hide(e *toc.Entry) {
	switch e.Type {
	case toc.Whiteout:
		dir, name := split(e.Name)
		if parent := m.find(dir); parent != nil && parent.isDir() {
			delete(parent.children, name)
		}
	case toc.Opaque:
		if n := m.find(e.Name); n != nil && n.isDir() {
			clear(n.children)
		}
	}
}

// addDirectory puts a directory into the tree, or describes one that is there anew.
func (m *merger) addDirectory(e *toc.Entry) error {
	inode := m.inode(e, 0)
	if old := m.find(e.Name); old != nil && old.isDir() {
		old.inode = inode
		return nil
	}
	return m.put(e.Name, &node{inode: inode, children: make(map[string]*node)})
}

// add puts an entry that is neither a directory nor a link into the tree.
func (m *merger) add(e *toc.Entry, place int64) error {
	switch e.Type {
	case toc.Directory, toc.Whiteout, toc.Opaque, toc.Hardlink, toc.Replaced:
		return nil
	}
	return m.put(e.Name, &node{inode: m.inode(e, place)})
}

// link gives the target one more name: before, or else what the tree has there,
// or else what this very layer has hidden.
func (m *merger) link(e *toc.Entry, before, hidden *node) error {
	target := before
	if target == nil {
		target = m.find(e.Link)
	}
	if target == nil {
		target = hidden
	}
	switch {
	case target == nil:
		return fmt.Errorf("hard link %q: there is no %q: %w", e.Name, e.Link, ErrMerge)
	case target.isDir():
		return fmt.Errorf("hard link %q: %q is a directory: %w", e.Name, e.Link, ErrMerge)
	}
	return m.put(e.Name, target)
}

// put makes n what name means. Directories that no layer describes are made up.
func (m *merger) put(name string, n *node) error {
	if name == "" {
		return fmt.Errorf("the root is not a directory: %w", ErrMerge)
	}
	dir, last := split(name)
	at := m.root
	for dir != "" {
		var part string
		part, dir, _ = strings.Cut(dir, "/")
		next := at.children[part]
		if next == nil {
			next = newDirectory()
			at.children[part] = next
		}
		if !next.isDir() {
			return through(name, strings.TrimSuffix(name[:len(name)-len(last)-1-len(dir)], "/"), next)
		}
		at = next
	}
	at.children[last] = n
	return nil
}

// find is what name means, or nil. The way there leads through directories only.
func (m *merger) find(name string) *node {
	at, rest := m.root, name
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if at = at.children[part]; at == nil {
			return nil
		}
	}
	return at
}

// through refuses a way through what is no directory. Following a symlink of a
// lower layer could lead a layer anywhere.
func through(name, below string, at *node) error {
	if at.inode.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return fmt.Errorf("%q lies below %q, which lower layers have as a symlink to %q: %w", name, below, at.inode.Link, ErrMerge)
	}
	return fmt.Errorf("%q lies below %q, which lower layers have as a file: %w", name, below, ErrMerge)
}

func split(name string) (dir, last string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// typeBits are the type in st_mode.
func typeBits(t toc.Type) uint32 {
	switch t {
	case toc.Directory:
		return syscall.S_IFDIR
	case toc.Symlink:
		return syscall.S_IFLNK
	case toc.Char:
		return syscall.S_IFCHR
	case toc.Block:
		return syscall.S_IFBLK
	case toc.Fifo:
		return syscall.S_IFIFO
	}
	return syscall.S_IFREG
}

func (m *merger) inode(e *toc.Entry, place int64) *erofs.Inode {
	in := &erofs.Inode{
		Mode: typeBits(e.Type) | e.Mode, UID: e.UID, GID: e.GID, Sec: e.Sec, Nsec: e.Nsec,
		Rdev: erofs.Rdev{Major: e.Major, Minor: e.Minor},
	}
	switch {
	case e.Type == toc.Symlink:
		in.Link = e.Link
	case e.HoldsPlace():
		in.Size, in.Device, in.Offset = e.Size, m.device, place
	}
	for _, x := range e.Xattrs {
		if !erofs.KnowsXattr(x.Name) {
			m.out.Dropped++
			continue
		}
		in.Xattrs = append(in.Xattrs, erofs.Xattr{Name: x.Name, Value: x.Value})
	}
	return in
}
