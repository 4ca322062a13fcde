package erofs

import (
	"slices"
	"strings"
)

const (
	xattrHeader    = 12 // erofs_xattr_ibody_header without its shared ids
	maxXattrValue  = 1<<16 - 1
	maxXattrName   = 255 // XATTR_NAME_MAX of linux/limits.h, with the prefix
	maxXattrBody   = xattrHeader + 4*(1<<16-2)
	maxXattrShared = 255 // h_shared_count is 8 bits wide
)

// xattrPrefixes are the name indexes of erofs_fs.h. The names of the two ACLs
// are whole names; after the others something must follow.
var xattrPrefixes = [...]struct {
	prefix string
	index  byte
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr is the index of an xattr's prefix and the rest of its name.
func splitXattr(name string) (index byte, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		suffix, found := strings.CutPrefix(name, p.prefix)
		if found && (suffix == "") == p.whole {
			return p.index, suffix, true
		}
	}
	return 0, "", false
}

// joinXattr is the reverse of splitXattr.
func joinXattr(index byte, suffix string) (name string, ok bool) {
	for _, p := range xattrPrefixes {
		if p.index == index && (suffix == "") == p.whole {
			return p.prefix + suffix, true
		}
	}
	return "", false
}

// KnowsXattr tells whether an image can hold an xattr of that name: one of
// user., trusted. and security., or a POSIX ACL. Others, such as
// system.nfs4_acl, have no number in the format.
func KnowsXattr(name string) bool {
	_, _, ok := splitXattr(name)
	return ok && len(name) <= maxXattrName && strings.IndexByte(name, 0) < 0
}

// xattrRecord is an xattr that one inode or several have.
type xattrRecord struct {
	index         byte
	suffix, value string
	uses          int
	id            uint32 // where it is shared: its place in units of 4 bytes
	shared        bool
}

// bytes is the length on disk, which is a multiple of 4.
func (r *xattrRecord) bytes() int { return align(4+len(r.suffix)+len(r.value), 4) }

func (r *xattrRecord) appendTo(b []byte) []byte {
	b = append(b, byte(len(r.suffix)), r.index, byte(len(r.value)), byte(len(r.value)>>8))
	b = append(b, r.suffix...)
	b = append(b, r.value...)
	return append(b, make([]byte, align(len(b), 4)-len(b))...)
}

// align rounds n up to a multiple of a power of two.
func align[T int | uint64](n, to T) T { return (n + to - 1) &^ (to - 1) }

// xattrTable has each different xattr of a tree once.
type xattrTable struct {
	index   map[Xattr]int32
	records []xattrRecord
	bytes   int // length of the shared area, once share has run
}

// add returns the records of xattrs, in the order of their names.
func (t *xattrTable) add(xattrs []Xattr) ([]int32, error) {
	sorted := slices.Clone(xattrs)
	slices.SortFunc(sorted, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	ids := make([]int32, 0, len(sorted))
	for i, x := range sorted {
		switch {
		case i > 0 && sorted[i-1].Name == x.Name:
			return nil, invalid("xattr %q is there twice", x.Name)
		case !KnowsXattr(x.Name):
			return nil, invalid("xattr %q has no place in the format", x.Name)
		case len(x.Value) > maxXattrValue:
			return nil, invalid("xattr %q has %d bytes, %d are possible", x.Name, len(x.Value), maxXattrValue)
		}
		id, seen := t.index[x]
		if !seen {
			if t.index == nil {
				t.index = make(map[Xattr]int32)
			}
			id = int32(len(t.records))
			t.index[x] = id
			index, suffix, _ := splitXattr(x.Name)
			t.records = append(t.records, xattrRecord{index: index, suffix: suffix, value: x.Value})
		}
		t.records[id].uses++
		ids = append(ids, id)
	}
	return ids, nil
}

// share decides which records are kept once for all their inodes: those that
// take less room that way, at 4 bytes an inode for the reference.
func (t *xattrTable) share() {
	for i := range t.records {
		r := &t.records[i]
		if size := r.bytes(); size+4*r.uses < size*r.uses {
			r.shared = true
			r.id = uint32(t.bytes / 4)
			t.bytes += size
		}
	}
}

// split parts an inode's records into shared and inline ones, and tells how
// long what follows the inode is.
func (t *xattrTable) split(ids []int32) (shared, inline []int32, size int) {
	size = xattrHeader
	for _, id := range ids {
		if t.records[id].shared && len(shared) < maxXattrShared {
			shared = append(shared, id)
			size += 4
		} else {
			inline = append(inline, id)
			size += t.records[id].bytes()
		}
	}
	return shared, inline, size
}

// appendBody appends what follows an inode with those records.
func (t *xattrTable) appendBody(b []byte, ids []int32) []byte {
	shared, inline, _ := t.split(ids)
	header := [xattrHeader]byte{4: byte(len(shared))}
	b = append(b, header[:]...)
	for _, id := range shared {
		b = le.AppendUint32(b, t.records[id].id)
	}
	for _, id := range inline {
		b = t.records[id].appendTo(b)
	}
	return b
}
