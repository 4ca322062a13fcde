package erofs

import (
	"cmp"
	"fmt"
	"slices"
)

// Xattrs reads an inode's xattrs, sorted by name.
func (r *Reader) Xattrs(n *Node) ([]Xattr, error) {
	x, err := r.xattrs(n, r.sharedXattr)
	if err != nil {
		return nil, fmt.Errorf("read xattrs of inode %d: %w", n.NID, err)
	}
	return x, nil
}

// xattrs reads an inode's xattrs; shared reads one that is not inline.
func (r *Reader) xattrs(n *Node, shared func(id uint32) (Xattr, error)) ([]Xattr, error) {
	size := n.raw.xattrBytes()
	if size == 0 {
		return nil, nil
	}
	body, err := r.read(n.end-uint64(size), size)
	if err != nil {
		return nil, err
	}
	count := int(body[4])
	body = body[xattrHeader:]
	if len(body) < 4*count {
		return nil, corrupt("%d shared ones in %d bytes", count, len(body))
	}
	found := make([]Xattr, 0, count)
	for i := range count {
		x, err := shared(le.Uint32(body[4*i:]))
		if err != nil {
			return nil, err
		}
		found = append(found, x)
	}
	for body = body[4*count:]; len(body) > 0; {
		if len(body) < 4 {
			return nil, corrupt("%d bytes are left", len(body))
		}
		length := xattrLength(body)
		if length > len(body) {
			return nil, corrupt("one of %d bytes in %d", length, len(body))
		}
		x, err := decodeXattr(body)
		if err != nil {
			return nil, err
		}
		found = append(found, x)
		body = body[length:]
	}
	slices.SortFunc(found, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	for i := range found[:max(len(found), 1)-1] {
		if found[i].Name == found[i+1].Name {
			return nil, corrupt("%q is there twice", found[i].Name)
		}
	}
	return found, nil
}

// xattrLength is the length on disk of the record whose first 4 bytes are in b.
func xattrLength(b []byte) int { return align(4+int(b[0])+int(le.Uint16(b[2:])), 4) }

// decodeXattr reads the record at the start of b, which has it whole.
func decodeXattr(b []byte) (Xattr, error) {
	nameEnd := 4 + int(b[0])
	name, ok := joinXattr(b[1], string(b[4:nameEnd]))
	if !ok || !KnowsXattr(name) {
		return Xattr{}, corrupt("name %q with index %d", b[4:nameEnd], b[1])
	}
	return Xattr{Name: name, Value: string(b[nameEnd : nameEnd+int(le.Uint16(b[2:]))])}, nil
}

// sharedXattr reads one from the shared area.
func (r *Reader) sharedXattr(id uint32) (Xattr, error) {
	pos := uint64(r.super.xattrBlock)*BlockSize + 4*uint64(id)
	header, err := r.read(pos, 4)
	if err != nil {
		return Xattr{}, err
	}
	b, err := r.read(pos, xattrLength(header))
	if err != nil {
		return Xattr{}, err
	}
	return decodeXattr(b)
}
