package toc

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Builder makes a TOC of entries as a layer has them, in the layer's order. It
// is for one goroutine. After an error it is of no more use.
type Builder struct {
	blobSize int64
	limit    int // MaxEntries
	entries  []Entry
	nodes    []int32 // of each entry; a marker's is the one that it is about
	chunks   int
	text     int // bytes of names, links and extended attributes
	device   int64
	tree     *tree
	// target is the entry that a hard link was made to, where the layer had it.
	target map[int32]int32
	links  []int32
	// open are the hard links that were made to nothing that the layer had: to a lower
	// layer's file, or else to what comes later. A link that is made to an open one
	// means the same; the value is the first link that does.
	open map[int32]int32
}

// NewBuilder makes a Builder for a layer's blob of the given size.
func NewBuilder(blobSize int64) *Builder {
	return &Builder{blobSize: blobSize, limit: MaxEntries, tree: newTree(0), target: make(map[int32]int32), open: make(map[int32]int32)}
}

// Grow makes room for n entries in all, as a guess.
func (b *Builder) Grow(n int) {
	b.entries = slices.Grow(b.entries, max(0, n-len(b.entries)))
	b.nodes = slices.Grow(b.nodes, max(0, n-len(b.nodes)))
	b.tree.grow(n)
}

// SetBlobSize says how large the blob is, where that was not known before.
func (b *Builder) SetBlobSize(n int64) { b.blobSize = n }

// Add takes an entry with its name as the layer has it: CleanName is applied to
// it and to a hard link's target, and names of markers are turned into Whiteout
// and Opaque. It returns the entry's index, for Entry, or -1 for
// an entry that is left out. Xattrs need not be sorted; of two with one name
// the last wins. The slices become the Builder's.
func (b *Builder) Add(e Entry) (int, error) {
	if e.Type == Replaced {
		return -1, fmt.Errorf("add %s: %w", e.Type, ErrInvalid)
	}
	keep, err := b.clean(&e)
	if err != nil || !keep {
		return -1, err
	}
	if err := checkEntry(&e, true); err != nil {
		return -1, err
	}
	i := len(b.entries)
	if err := b.put(e); err != nil {
		return -1, err
	}
	if e.Type == Hardlink {
		if err := b.link(int32(i)); err != nil {
			return -1, err
		}
	}
	if e.Type != Whiteout && e.Type != Opaque {
		b.tree.set(b.nodes[i], int32(i), b.entries)
	}
	return i, nil
}

// put appends a clean entry, and finds its node.
func (b *Builder) put(e Entry) error {
	if err := b.count(&e); err != nil {
		return err
	}
	n, err := b.tree.placeOf(&e, b.entries)
	if err != nil {
		return err
	}
	b.entries, b.nodes = append(b.entries, e), append(b.nodes, n)
	return nil
}

// clean brings names and extended attributes into the model's form. It is false
// for an entry that says nothing.
func (b *Builder) clean(e *Entry) (keep bool, err error) {
	if e.Name, err = CleanName(e.Name); err != nil {
		return false, err
	}
	if e.Type == Whiteout || e.Type == Opaque {
		*e = Entry{Name: e.Name, Type: e.Type}
		return true, nil
	}
	t, victim, private, err := whiteout(e.Name)
	switch {
	case err != nil || private:
		return false, err
	case t != 0:
		*e = Entry{Name: victim, Type: t}
		return true, nil
	}
	e.Xattrs = sortXattrs(e.Xattrs)
	if e.Type != Hardlink {
		return true, nil
	}
	link, err := CleanName(e.Link)
	if err != nil {
		return false, fmt.Errorf("hard link %s: target: %w", quote(e.Name), err)
	}
	*e = Entry{Name: e.Name, Type: Hardlink, Link: link}
	if link == e.Name {
		// GNU tar writes a file that it is given twice like this.
		if j := b.tree.find(link); j >= 0 && b.entries[j].Type != Directory {
			return false, nil
		}
	}
	return true, nil
}

// count holds what is added against the limits.
func (b *Builder) count(e *Entry) error {
	b.text += len(e.Name) + len(e.Link)
	for _, x := range e.Xattrs {
		b.text += len(x.Name) + len(x.Value)
	}
	b.chunks += len(e.Chunks)
	b.device += e.Extent()
	switch {
	case len(b.entries) >= b.limit || len(b.tree.nodes) > b.limit:
		return fmt.Errorf("more than %d entries: %w", b.limit, ErrLimit)
	case b.chunks > b.limit:
		return fmt.Errorf("more than %d chunks: %w", b.limit, ErrLimit)
	case b.text > MaxText:
		return fmt.Errorf("names and extended attributes of more than %d bytes: %w", MaxText, ErrLimit)
	case b.device > MaxDevice:
		return fmt.Errorf("files of more than %d bytes: %w", int64(MaxDevice), ErrLimit)
	}
	return nil
}

// Entry is the entry that Add has returned i for, valid until the next Add. Its
// Chunks may be set until Finish; nothing else may.
func (b *Builder) Entry(i int) *Entry { return &b.entries[i] }

// AddChunk adds to the chunks of the regular file that Add has returned i for.
func (b *Builder) AddChunk(i int, c Chunk) error {
	if b.chunks++; b.chunks > b.limit {
		return fmt.Errorf("more than %d chunks: %w", b.limit, ErrLimit)
	}
	b.entries[i].Chunks = append(b.entries[i].Chunks, c)
	return nil
}

func sortXattrs(x []Xattr) []Xattr {
	byName := func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }
	if len(x) < 2 {
		return x
	}
	slices.SortStableFunc(x, byName)
	kept := x[:1]
	for _, a := range x[1:] {
		if last := &kept[len(kept)-1]; last.Name == a.Name {
			*last = a
		} else {
			kept = append(kept, a)
		}
	}
	return kept
}

// link finds out what the hard link i is another name of, as things stand.
func (b *Builder) link(i int32) error {
	b.links = append(b.links, i)
	e := &b.entries[i]
	j := b.tree.find(e.Link)
	switch {
	case j < 0:
		b.open[i] = i
		return nil
	case b.entries[j].Type == Directory:
		return fmt.Errorf("hard link %s to the directory %s: %w", quote(e.Name), quote(e.Link), ErrInvalid)
	case b.entries[j].Type != Hardlink:
		b.target[i] = j
		return nil
	}
	if t, ok := b.target[j]; ok {
		b.target[i] = t
		return nil
	}
	b.open[i] = b.open[j]
	if e.Link = b.entries[j].Link; e.Link == e.Name {
		return fmt.Errorf("hard link %s leads to itself: %w", quote(e.Name), ErrInvalid)
	}
	return nil
}

// Finish returns the valid TOC of what was added.
func (b *Builder) Finish() (*TOC, error) {
	alive := b.alive()
	if err := b.resolve(alive); err != nil {
		return nil, err
	}
	b.promote(alive)
	t := &TOC{Entries: b.entries[:0], BlobSize: b.blobSize}
	if first := b.first(alive); len(first) > 0 {
		t.Entries = append(make([]Entry, 0, len(b.entries)+len(first)), first...)
	}
	for i := range b.entries {
		e := b.entries[i]
		switch {
		case alive[i]:
		case e.HoldsPlace():
			e = Entry{Type: Replaced, Size: e.Size, Chunks: e.Chunks}
		default:
			continue
		}
		if err := checkEntry(&e, true); err != nil {
			return nil, err
		}
		t.Entries = append(t.Entries, e)
	}
	clear(b.entries[min(len(t.Entries), len(b.entries)):])
	if err := checkBlob(t); err != nil {
		return nil, err
	}
	b.tree = nil
	return t, nil
}

// alive tells for each entry whether it is the one that its name means, and
// for each marker whether it is the first of its kind.
func (b *Builder) alive() []bool {
	alive := make([]bool, len(b.entries))
	above := b.tree.cuts()
	for i := range b.entries {
		n := b.nodes[i]
		nd := &b.tree.nodes[n]
		cut := above[n]
		var mark uint8
		switch b.entries[i].Type {
		case Whiteout:
			mark = markWhiteout
		case Opaque:
			mark, cut = markOpaque, max(cut, nd.cut)
		default:
			alive[i] = nd.entry == int32(i) && int32(i) >= cut
			continue
		}
		if int32(i) >= cut && nd.marks&mark == 0 {
			nd.marks |= mark
			alive[i] = true
		}
	}
	return alive
}

// resolve refuses open hard links that lead to a directory or to themselves.
func (b *Builder) resolve(alive []bool) error {
	for _, i := range b.links {
		if _, open := b.open[i]; !open || !alive[i] {
			continue
		}
		name := b.entries[i].Link
		for steps := 0; ; steps++ {
			j := b.tree.find(name)
			if j < 0 {
				break // a lower layer's
			}
			if b.entries[j].Type == Directory {
				return fmt.Errorf("hard link %s to the directory %s: %w", quote(b.entries[i].Name), quote(name), ErrInvalid)
			}
			if _, open := b.open[j]; !open {
				break
			}
			name = b.entries[j].Link
			if steps > len(b.links) || name == b.entries[i].Name {
				return fmt.Errorf("hard link %s leads to itself: %w", quote(b.entries[i].Name), ErrInvalid)
			}
		}
	}
	return nil
}

// first takes the entries out that are to come first: open hard links to a name that
// the layer has, since a link that stands before its target is one that was made
// before it; and opaque markers for directories that something else was before, which
// has hidden what lower layers have below.
func (b *Builder) first(alive []bool) (list []Entry) {
	var links []int32
	for _, i := range b.links {
		if _, open := b.open[i]; open && alive[i] && b.tree.find(b.entries[i].Link) >= 0 {
			links = append(links, i)
			alive[i] = false
		}
	}
	slices.SortStableFunc(links, func(i, j int32) int { return cmp.Compare(b.open[i], b.open[j]) })
	for _, i := range links {
		list = append(list, b.entries[i])
	}
	for n := range b.tree.nodes {
		nd := &b.tree.nodes[n]
		if nd.marks&markOther == 0 || nd.marks&markOpaque != 0 || nd.entry < 0 || !alive[nd.entry] || b.entries[nd.entry].Type != Directory {
			continue
		}
		list = append(list, Entry{Name: b.entries[nd.entry].Name, Type: Opaque})
	}
	return list
}

// promote gives hard links the present name of their target. Where that was
// replaced, its first surviving link takes its place: the link becomes the entry.
func (b *Builder) promote(alive []bool) {
	for _, i := range b.links {
		t, ok := b.target[i]
		if !ok || !alive[i] {
			continue
		}
		if alive[t] {
			b.entries[i].Link = b.entries[t].Name
			continue
		}
		b.entries[t].Name = b.entries[i].Name
		alive[t], alive[i] = true, false
	}
}
