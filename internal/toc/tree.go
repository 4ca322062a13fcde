package toc

import (
	"fmt"
	"strings"
)

// tree has a node for every path that the entries of a Builder name, and for the
// directories above. Memory and time are proportional to the bytes of the names.
type tree struct {
	nodes    []node
	children map[child]int32
	// lastDir is the directory of the entry before, all of whose ancestors were
	// seen to be directories: most entries follow one of the same directory.
	lastDir  string
	lastNode int32
	lastOK   bool
}

type child struct {
	parent int32
	name   string
}

type node struct {
	parent int32
	// entry is the last entry of this path, -1 where there is none.
	entry int32
	// cut: entries below this path with smaller indices are replaced.
	cut    int32
	inside bool // has nodes below
	marks  uint8
}

// Bits of node.marks, so that each marker is kept once.
const (
	markWhiteout = 1 << iota
	markOpaque
)

const rootNode = 0

// newTree has room for n paths.
func newTree(n int) *tree {
	t := &tree{nodes: make([]node, 1, n+1), children: make(map[child]int32, n)}
	t.nodes[rootNode] = node{parent: -1, entry: -1}
	return t
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
	key := child{parent, name}
	n, ok := t.children[key]
	if !ok {
		n = int32(len(t.nodes))
		t.nodes = append(t.nodes, node{parent: parent, entry: -1})
		t.nodes[parent].inside = true
		t.children[key] = n
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
			return 0, fmt.Errorf("%s lies below %s, which is a %s: %w", quote(name), quote(e.Name), e.Type, ErrInvalid)
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
		next, ok := t.children[child{at, part}]
		if !ok {
			return -1
		}
		at, rest = next, after
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
	if entries[i].Type != Directory && nd.inside {
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
