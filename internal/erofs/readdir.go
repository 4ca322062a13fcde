package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"sort"
)

// Entry is a name in a directory of an image.
type Entry struct {
	Name string
	// NID is the number of its inode.
	NID uint64
	// Type is the type of its inode, as the type bits of st_mode.
	Type uint32
}

// ReadDir returns the names in a directory, sorted bytewise, without "." and
// "..".
func (r *Reader) ReadDir(dir *Node) ([]Entry, error) {
	d, err := r.readDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read directory %d: %w", dir.NID, err)
	}
	return d.entries, nil
}

// List is ReadDir with "." and ".." before the names.
func (r *Reader) List(dir *Node) ([]Entry, error) {
	d, err := r.readDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list directory %d: %w", dir.NID, err)
	}
	dots := []Entry{{Name: ".", NID: dir.NID, Type: typeDir}, {Name: "..", NID: d.parent, Type: typeDir}}
	return append(dots, d.entries...), nil
}

// dirContent is what a directory says.
type dirContent struct {
	entries []Entry
	parent  uint64
}

func (r *Reader) readDir(dir *Node) (*dirContent, error) {
	if dir.Mode&typeMask != typeDir {
		return nil, fmt.Errorf("inode is not a directory")
	}
	d := &dirContent{}
	last, dots := "", 0
	for i := range dirBlocks(dir) {
		block, err := r.dirBlock(dir, i)
		if err != nil {
			return nil, err
		}
		for _, e := range block {
			if e.Name <= last {
				return nil, corrupt("name %q comes after %q", e.Name, last)
			}
			last = e.Name
			switch e.Name {
			case ".":
				dots++
				if e.NID != dir.NID {
					return nil, corrupt("\".\" is inode %d", e.NID)
				}
			case "..":
				dots++
				d.parent = e.NID
			default:
				d.entries = append(d.entries, e)
			}
		}
	}
	if dots != 2 {
		return nil, corrupt("no \".\" or no \"..\"")
	}
	return d, nil
}

func dirBlocks(dir *Node) int { return int((dir.raw.size-1)/BlockSize) + 1 }

// dirBlock reads one block of a directory. The names in it are checked, but not
// their order.
func (r *Reader) dirBlock(dir *Node, i int) ([]Entry, error) {
	start := uint64(i) * BlockSize
	b, err := r.content(dir, start, int(min(dir.raw.size-start, BlockSize)))
	if err != nil {
		return nil, err
	}
	count, err := direntCount(b)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, count)
	for k := range count {
		name, err := direntName(b, k, count)
		if err != nil {
			return nil, err
		}
		e := Entry{Name: string(name), NID: le.Uint64(b[k*direntSize:])}
		if e.Type = typeOf(b[k*direntSize+10]); e.Type == 0 {
			return nil, corrupt("%q has type %d", e.Name, b[k*direntSize+10])
		}
		if e.Name != "." && e.Name != ".." {
			if what := checkName(e.Name); what != "" {
				return nil, corrupt("%q: %s", e.Name, what)
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// direntCount is how many entries a block has: their names begin behind the
// last of them.
func direntCount(b []byte) (int, error) {
	if len(b) < direntSize {
		return 0, corrupt("directory block of %d bytes", len(b))
	}
	nameOffset := int(le.Uint16(b[8:]))
	if nameOffset < direntSize || nameOffset%direntSize != 0 || nameOffset > len(b) {
		return 0, corrupt("first name at %d of a directory block of %d bytes", nameOffset, len(b))
	}
	return nameOffset / direntSize, nil
}

// direntName is the name of entry k of count. The last one ends at a NUL
// or at the end of b.
func direntName(b []byte, k, count int) ([]byte, error) {
	start := int(le.Uint16(b[k*direntSize+8:]))
	if k+1 < count {
		end := int(le.Uint16(b[(k+1)*direntSize+8:]))
		if start > end || end > len(b) {
			return nil, corrupt("name at [%d,%d) of a directory block of %d bytes", start, end, len(b))
		}
		return b[start:end], nil
	}
	if start > len(b) {
		return nil, corrupt("name at %d of a directory block of %d bytes", start, len(b))
	}
	name, _, _ := bytes.Cut(b[start:], []byte{0})
	return name, nil
}

// typeOf is the reverse of direntType, and 0 for what is not one.
func typeOf(direntType byte) uint32 {
	types := [...]uint32{0, typeRegular, typeDir, typeChar, typeBlock, typeFIFO, typeSocket, typeSymlink}
	if int(direntType) >= len(types) {
		return 0
	}
	return types[direntType]
}

// Lookup finds one name in a directory: fs.ErrNotExist where it is not there.
// It reads few blocks of a large one.
func (r *Reader) Lookup(dir *Node, name string) (Entry, error) {
	fail := func(err error) (Entry, error) {
		return Entry{}, fmt.Errorf("look up %q in directory %d: %w", name, dir.NID, err)
	}
	if dir.Mode&typeMask != typeDir {
		return fail(fmt.Errorf("inode is not a directory"))
	}
	var failed error
	// The first block that begins after name follows the one that has it.
	after := sort.Search(dirBlocks(dir), func(i int) bool {
		if failed != nil {
			return true
		}
		entries, err := r.dirBlock(dir, i)
		if err != nil {
			failed = err
			return true
		}
		return entries[0].Name > name
	})
	if failed != nil {
		return fail(failed)
	}
	if after == 0 {
		return fail(fs.ErrNotExist)
	}
	entries, err := r.dirBlock(dir, after-1)
	if err != nil {
		return fail(err)
	}
	for _, e := range entries {
		if e.Name == name {
			return e, nil
		}
	}
	return fail(fs.ErrNotExist)
}
