package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

// node is an inode of a flattened tree; hard links share one.
type node struct {
	mode         uint32 // st_mode
	uid, gid     uint32
	when         time.Time
	major, minor uint32
	link         string
	xattrs       map[string]string
	size         int64
	sum          [sha256.Size]byte
	children     map[string]*node // of a directory
	names        int              // of what is no directory
}

func newDir() *node {
	return &node{mode: syscall.S_IFDIR | 0o755, when: time.Unix(0, 0), children: make(map[string]*node)}
}

// unpacker flattens layers as the OCI image specification says (layer.md,
// Applying Changesets). It knows nothing of the product but which names eStargz adds.
type unpacker struct {
	t    testing.TB
	root *node
}

// loss says what a format cannot carry.
type loss struct {
	fractions bool // of a second: times are rounded
	bytes     bool // of names that are not UTF-8: the layer is read whole
}

// unpack flattens layers, which are tar files, the lowest first.
func unpack(t testing.TB, layers [][]byte, l loss) *node {
	t.Helper()
	u := &unpacker{t, newDir()}
	for _, layer := range layers {
		l := l
		if l.bytes && !hasUTF8(t, layer) {
			l = loss{} // it is read whole
		}
		// A whiteout is about the layers below, wherever it stands.
		u.each(layer, l, func(h *tar.Header, _ io.Reader) { u.hide(h.Name) })
		u.each(layer, l, u.add)
	}
	count(u.root)
	return u.root
}

// hasUTF8 tells whether all names of a layer are.
func hasUTF8(t testing.TB, layer []byte) bool {
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			t.Fatal(err)
		}
		if !utf8.ValidString(h.Name + h.Linkname) {
			return false
		}
	}
}

func (u *unpacker) each(layer []byte, l loss, do func(*tar.Header, io.Reader)) {
	u.t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			u.t.Fatal(err)
		}
		h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if l.fractions {
			h.ModTime = h.ModTime.Round(time.Second)
		}
		switch h.Name {
		case "stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark":
			continue
		}
		do(h, r)
	}
}

// lookup is what name means, or nil.
func (u *unpacker) lookup(name string) *node {
	n := u.root
	for part := range strings.SplitSeq(name, "/") {
		if part == "" {
			continue
		}
		if n = n.children[part]; n == nil {
			return nil
		}
	}
	return n
}

// parent is the directory of name, made where there is none.
func (u *unpacker) parent(name string) *node {
	n := u.root
	dir, _ := path.Split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if part == "" {
			continue
		}
		next := n.children[part]
		if next == nil {
			next = newDir()
			n.children[part] = next
		}
		if next.children == nil {
			u.t.Fatalf("%q lies below what is no directory", name)
		}
		n = next
	}
	return n
}

func (u *unpacker) hide(name string) {
	dir, last := path.Split(name)
	hidden, ok := strings.CutPrefix(last, ".wh.")
	if n := u.lookup(dir); ok && n != nil && n.children != nil {
		if last == ".wh..wh..opq" {
			clear(n.children)
		} else if !strings.HasPrefix(hidden, ".wh.") {
			delete(n.children, hidden)
		}
	}
}

func (u *unpacker) add(h *tar.Header, data io.Reader) {
	last := path.Base(h.Name)
	if strings.HasPrefix(last, ".wh.") {
		return
	}
	if h.Typeflag == tar.TypeLink {
		target := u.lookup(path.Clean("/" + h.Linkname))
		if target == nil || target.children != nil {
			u.t.Fatalf("hard link %q: no %q", h.Name, h.Linkname)
		}
		u.parent(h.Name).children[last] = target
		return
	}
	types := map[byte]uint32{
		tar.TypeReg: syscall.S_IFREG, tar.TypeGNUSparse: syscall.S_IFREG, tar.TypeCont: syscall.S_IFREG,
		tar.TypeDir: syscall.S_IFDIR, tar.TypeSymlink: syscall.S_IFLNK,
		tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK, tar.TypeFifo: syscall.S_IFIFO,
	}
	kind, ok := types[h.Typeflag]
	if !ok {
		u.t.Fatalf("%q: type %q", h.Name, h.Typeflag)
	}
	n := &node{mode: kind | uint32(h.Mode)&0o7777, uid: uint32(h.Uid), gid: uint32(h.Gid), when: h.ModTime, xattrs: make(map[string]string)}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			n.xattrs[name] = v
		}
	}
	switch kind {
	case syscall.S_IFREG:
		sum := sha256.New()
		size, err := io.Copy(sum, data)
		if err != nil {
			u.t.Fatal(err)
		}
		n.size = size
		sum.Sum(n.sum[:0])
	case syscall.S_IFLNK:
		n.link = h.Linkname
	case syscall.S_IFCHR, syscall.S_IFBLK:
		n.major, n.minor = uint32(h.Devmajor), uint32(h.Devminor)
	case syscall.S_IFDIR:
		if old := u.lookup(h.Name); old != nil && old.children != nil {
			n.children = old.children // it is described anew
		} else {
			n.children = make(map[string]*node)
		}
		if h.Name == "" {
			u.root = n
			return
		}
	}
	u.parent(h.Name).children[last] = n
}

// count counts the names of each inode.
func count(dir *node) {
	for _, n := range dir.children {
		if n.children != nil {
			count(n)
		} else {
			n.names++
		}
	}
}
