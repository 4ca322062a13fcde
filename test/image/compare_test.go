package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// comparison compares a directory with a tree.
type comparison struct {
	t     testing.TB
	wrong int
	inode map[*node]uint64
	files int
	bytes int64
	buf   []byte
	// bare: without extended attributes.
	bare bool
}

// compare wants the filesystem at dir to be the tree, in everything that can be
// seen of it.
func compare(t testing.TB, dir string, want *node) (files int, size int64) {
	t.Helper()
	return compareWith(&comparison{t: t}, dir, want)
}

func compareWith(c *comparison, dir string, want *node) (files int, size int64) {
	c.t.Helper()
	c.inode, c.buf = make(map[*node]uint64), make([]byte, 1<<20)
	c.node(dir, want)
	if c.wrong > 0 {
		c.t.Fatalf("%d differences", c.wrong)
	}
	return c.files, c.bytes
}

func (c *comparison) differs(path, form string, args ...any) {
	c.t.Helper()
	if c.wrong++; c.wrong <= 20 {
		c.t.Errorf("%q: %s", path, fmt.Sprintf(form, args...))
	}
}

func (c *comparison) node(path string, want *node) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		c.differs(path, "%v", err)
		return
	}
	c.files++
	if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid {
		c.differs(path, "is %o %d:%d, want %o %d:%d", st.Mode, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		return
	}
	if when := time.Unix(st.Mtim.Sec, st.Mtim.Nsec); !when.Equal(want.when) {
		c.differs(path, "time %v, want %v", when.UTC(), want.when.UTC())
	}
	links := uint64(want.names)
	if want.children != nil {
		links = 2
		for _, n := range want.children {
			if n.children != nil {
				links++
			}
		}
	} else if ino, ok := c.inode[want]; ok && ino != st.Ino {
		c.differs(path, "inode %d, another name of it has %d", st.Ino, ino)
	} else {
		c.inode[want] = st.Ino
	}
	if st.Nlink != links {
		c.differs(path, "%d links, want %d", st.Nlink, links)
	}
	if !c.bare {
		c.xattrs(path, want)
	}
	switch want.mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		c.directory(path, want)
	case syscall.S_IFREG:
		c.data(path, want, &st)
	case syscall.S_IFLNK:
		if link, err := os.Readlink(path); err != nil || link != want.link || st.Size != int64(len(want.link)) {
			c.differs(path, "leads to %q (%d bytes), %v, want %q", link, st.Size, err, want.link)
		}
	case syscall.S_IFCHR, syscall.S_IFBLK:
		// As linux/kdev_t.h has it in new_encode_dev.
		if rdev := uint64(want.minor&0xff | want.major<<8 | (want.minor&^0xff)<<12); st.Rdev != rdev {
			c.differs(path, "device %x, want %x", st.Rdev, rdev)
		}
	}
}

func (c *comparison) directory(path string, want *node) {
	entries, err := os.ReadDir(path)
	if err != nil {
		c.differs(path, "%v", err)
	}
	seen := make(map[string]bool)
	for _, e := range entries {
		if seen[e.Name()] {
			c.differs(path, "has %q twice", e.Name())
		}
		if seen[e.Name()] = true; want.children[e.Name()] == nil {
			c.differs(path, "has %q, and nothing asks for it", e.Name())
		}
	}
	for name, n := range want.children {
		if !seen[name] {
			c.differs(path, "has no %q", name)
			continue
		}
		c.node(filepath.Join(path, name), n)
	}
}

func (c *comparison) data(path string, want *node, st *syscall.Stat_t) {
	if st.Size != want.size {
		c.differs(path, "%d bytes, want %d", st.Size, want.size)
		return
	}
	sum, err := c.sum(path)
	if err != nil || sum != want.sum {
		c.differs(path, "other data than it should have (%d bytes), %v", want.size, err)
	}
	c.bytes += want.size
}

func (c *comparison) sum(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	_, err = io.CopyBuffer(h, struct{ io.Reader }{f}, c.buf)
	h.Sum(sum[:0])
	return sum, errors.Join(err, f.Close())
}

func (c *comparison) xattrs(path string, want *node) {
	got, err := xattrsOf(path)
	if err != nil {
		c.differs(path, "extended attributes: %v", err)
		return
	}
	for name, value := range want.xattrs {
		if got[name] != value {
			c.differs(path, "%s is %.60q, want %.60q", name, got[name], value)
		}
	}
	if len(got) != len(want.xattrs) {
		c.differs(path, "%d extended attributes, want %d", len(got), len(want.xattrs))
	}
}

// xattrsOf reads all extended attributes of path itself.
func xattrsOf(path string) (map[string]string, error) {
	at, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	n, _, errno := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(at)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	if errno != 0 {
		return nil, errno
	}
	all := make(map[string]string)
	if n == 0 {
		return all, nil
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		key, err := syscall.BytePtrFromString(name)
		if err != nil {
			return nil, err
		}
		n, _, errno := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(at)), uintptr(unsafe.Pointer(key)),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
		if errno != 0 {
			return nil, fmt.Errorf("%s: %w", name, errno)
		}
		all[name] = string(bytes.Clone(buf[:n]))
	}
	return all, nil
}
