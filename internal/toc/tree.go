package toc

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// tree has a node for every path that the entries of a Builder name, and for the
// directories above. Memory and time are proportional to the bytes of the names.
type tree struct {
	nodes []node
	// table finds nodes by parent and name: 0, or a node and in the upper half a
	// part of its hash, at the place that the hash says or the next free one
	// after. A map of Go's takes twice the time and memory.
	table []uint64
	seed  maphash.Seed
	// lastDir is the directory of the entry before, all of whose ancestors were
	// seen to be directories: most entries follow one of the same directory.
	lastDir  string
	lastNode int32
	lastOK   bool
}

type node struct {
	name   string // the last component
	parent int32
	// entry is the last entry of this path, -1 where there is none.
	entry int32
	// cut: entries below this path with smaller indices are replaced.
	cut    int32
	inside bool // has nodes below
	marks  uint8
}

// Bits of node.marks: each marker is kept once.
const (
	markWhiteout = 1 << iota
	markOpaque
	// markOther: something else than a directory was there.
	markOther
)

const rootNode = 0

// newTree has room for n paths.
func newTree(n int) *tree {
	t := &tree{nodes: []node{{parent: -1, entry: -1}}, seed: maphash.MakeSeed()}
	t.grow(max(n, 64))
	return t
}

// grow makes room for n paths.
func (t *tree) grow(n int) {
	t.nodes = slices.Grow(t.nodes, max(0, n-len(t.nodes)))
	if 2*n > len(t.table) {
		t.resize(n)
	}
}

// resize makes a table that n nodes fill at most to half.
func (t *tree) resize(n int) {
	t.table = make([]uint64, 1<<bits.Len(uint(2*n)))
	for i := 1; i < len(t.nodes); i++ {
		at, tag, _ := t.slot(t.nodes[i].parent, t.nodes[i].name)
		t.table[at] = tag | uint64(i)
	}
}

// slot is where the node of name below parent stands in the table, or would;
// tag is the part of its hash that stands there too.
func (t *tree) slot(parent int32, name string) (at int, tag uint64, found bool) {
	// The parent goes through a multiplication that spreads it over all bits.
	h := maphash.String(t.seed, name) ^ uint64(parent)*0x9E3779B97F4A7C15
	tag = h &^ math.MaxUint32
	mask := len(t.table) - 1
	for at = int(h & uint64(mask)); t.table[at] != 0; at = (at + 1) & mask {
		if t.table[at]&^math.MaxUint32 != tag {
			continue
		}
		if n := &t.nodes[uint32(t.table[at])]; n.parent == parent && n.name == name {
			return at, tag, true
		}
	}
	return at, tag, false
}

// placeOf is the node of what e is about: for an opaque marker its directory,
// which the marker lies in.
func (t *tree) placeOf(e *Entry, entries []Entry) (int32, error) {
	if e.Type != Opaque {
		return t.place(e.Name, entries)
	}
	n, err := t.place(join(e.Name, opaqueMarker), entries)
	if err != nil {
		return 0, err
	}
	return t.nodes[n].parent, nil
}

// step returns the node of name below parent, made if need be.
func (t *tree) step(parent int32, name string) int32 {
	at, tag, found := t.slot(parent, name)
	if found {
		return int32(uint32(t.table[at]))
	}
	n := int32(len(t.nodes))
	t.nodes = append(t.nodes, node{name: name, parent: parent, entry: -1})
	t.nodes[parent].inside = true
	if t.table[at] = tag | uint64(n); 2*len(t.nodes) > len(t.table) {
		t.resize(len(t.table))
	}
	return n
}

// place returns the node of a clean name, made if need be. It fails where a
// part of the path is something else than a directory.
func (t *tree) place(name string, entries []Entry) (int32, error) {
	if name == "" {
		return rootNode, nil
	}
	dir, last := split(name)
	if t.lastOK && dir == t.lastDir {
		return t.step(t.lastNode, last), nil
	}
	at, cut := int32(rootNode), int32(0)
	for rest := dir; ; {
		n := &t.nodes[at]
		if n.entry >= cut && n.entry >= 0 && entries[n.entry].Type != Directory {
			e := &entries[n.entry]
			to := ""
			if e.Type == Symlink {
				to = " to " + quote(e.Link)
			}
			return 0, fmt.Errorf("%s lies below %s, which is a %s%s: %w", quote(name), quote(e.Name), e.Type, to, ErrInvalid)
		}
		cut = max(cut, n.cut)
		if rest == "" {
			break
		}
		part, after, _ := strings.Cut(rest, "/")
		at, rest = t.step(at, part), after
	}
	t.lastDir, t.lastNode, t.lastOK = dir, at, true
	return t.step(at, last), nil
}

// find returns the index of the entry of a clean name, or -1.
func (t *tree) find(name string) int32 {
	at, cut := int32(rootNode), int32(0)
	for rest := name; rest != ""; {
		part, after, _ := strings.Cut(rest, "/")
		cut = max(cut, t.nodes[at].cut)
		slot, _, ok := t.slot(at, part)
		if !ok {
			return -1
		}
		at, rest = int32(uint32(t.table[slot])), after
	}
	if e := t.nodes[at].entry; e >= cut {
		return e
	}
	return -1
}

// set makes entry i the one of node n. Whatever lies below is replaced, unless
// a directory follows a directory (or the directory that nobody named).
func (t *tree) set(n, i int32, entries []Entry) (old int32) {
	nd := &t.nodes[n]
	old, nd.entry = nd.entry, i
	if entries[i].Type == Directory {
		return old
	}
	nd.marks |= markOther
	if nd.inside {
		nd.cut = i
		t.lastOK = false
	}
	return old
}

// cuts returns for each node the largest cut above it.
func (t *tree) cuts() []int32 {
	above := make([]int32, len(t.nodes))
	for i := 1; i < len(t.nodes); i++ { // a parent comes before its children
		p := t.nodes[i].parent
		above[i] = max(above[p], t.nodes[p].cut)
	}
	return above
}
