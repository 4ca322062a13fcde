package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/sys"
)

// mountImage mounts an image with its devices onto a directory of the test's,
// until the test ends.
func mountImage(t testing.TB, image string, devices []string) (dir string) {
	t.Helper()
	featurestest.NeedRoot(t)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(filepath.Dir(image)))
	dir = t.TempDir()
	if err := tryMount(image, devices, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Unmount(dir, false); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// tryMount names every file by a descriptor, as a path of more than 255 bytes
// must be.
func tryMount(image string, devices []string, dir string) (err error) {
	context, err := sys.Fsopen("erofs")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, context.Close()) }()
	if err := sys.FsconfigFlag(context, "ro"); err != nil {
		return err
	}
	key := "source"
	for _, path := range append([]string{image}, devices...) {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := sys.FsconfigString(context, key, fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
			return err
		}
		key = "device"
	}
	if err := sys.FsconfigCreate(context); err != nil {
		return err
	}
	tree, err := sys.Fsmount(context, sys.MountReadOnly)
	if err != nil {
		return err
	}
	return errors.Join(sys.MoveMount(tree, dir), tree.Close())
}

func TestKernelMountsWhatIsWritten(t *testing.T) {
	img := sample()
	// A path that fsconfig(2) does not take as it is.
	far := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	if err := os.MkdirAll(far, 0o700); err != nil {
		t.Fatal(err)
	}
	image, devices := files(t, img, far)
	compareMount(t, img, mountImage(t, image, devices), 1)
}

// compareMount compares the mount at dir with img. Of the files one in every is read.
func compareMount(t *testing.T, img *Image, dir string, every int) {
	t.Helper()
	c := comparison{t: t, inodes: map[*Inode]uint64{}, links: links(img.Root), every: every}
	for i, d := range img.Devices {
		c.devices = append(c.devices, deviceBytes(i, 0, int64(d.Blocks)*BlockSize))
	}
	c.compare(dir, img.Root)
}

// links counts the links of every inode.
func links(root *Inode) map[*Inode]uint64 {
	n := map[*Inode]uint64{root: 2}
	var walk func(in *Inode)
	walk = func(in *Inode) {
		for _, c := range in.Children {
			if c.Inode.Mode&typeMask == typeDir {
				n[c.Inode], n[in] = 2, n[in]+1
				walk(c.Inode)
			} else {
				n[c.Inode]++
			}
		}
	}
	walk(root)
	return n
}

type comparison struct {
	t       *testing.T
	devices [][]byte
	inodes  map[*Inode]uint64
	links   map[*Inode]uint64
	failed  int
	files   int         // met so far
	every   int         // one in so many files is read
	buf     [65536]byte // no xattr has more (XATTR_SIZE_MAX of linux/limits.h)
}

func (c *comparison) errorf(format string, args ...any) {
	c.t.Helper()
	if c.failed++; c.failed < 20 {
		c.t.Errorf(format, args...)
	}
}

// facts are what stat(2) says of an inode.
type facts struct {
	mode, uid, gid uint32
	time           syscall.Timespec
	links, rdev    uint64
}

func (c *comparison) compare(path string, in *Inode) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		c.errorf("%q: %v", path, err)
		return
	}
	got := facts{st.Mode, st.Uid, st.Gid, st.Mtim, st.Nlink, st.Rdev}
	want := facts{in.Mode, in.UID, in.GID, syscall.Timespec{Sec: in.Sec, Nsec: int64(in.Nsec)}, c.links[in], 0}
	if kind := in.Mode & typeMask; kind == typeChar || kind == typeBlock {
		// makedev of sys/sysmacros.h.
		want.rdev = uint64(in.Rdev.Minor&0xff) | uint64(in.Rdev.Major)<<8 | uint64(in.Rdev.Minor&^0xff)<<12
	}
	if got != want {
		c.errorf("%q\n got %+v\nwant %+v", path, got, want)
	}
	if ino, seen := c.inodes[in]; seen && ino != st.Ino {
		c.errorf("%q: inodes %d and %d for one", path, st.Ino, ino)
	} else if seen {
		return
	}
	c.inodes[in] = st.Ino
	c.xattrs(path, in)
	switch in.Mode & typeMask {
	case typeRegular:
		c.data(path, in)
	case typeSymlink:
		if link, err := os.Readlink(path); err != nil || link != in.Link || st.Size != int64(len(link)) {
			c.errorf("%q: link to %q, size %d: %v", path, link, st.Size, err)
		}
	case typeDir:
		c.children(path, in)
	}
}

func (c *comparison) children(path string, in *Inode) {
	entries, err := os.ReadDir(path)
	if err != nil {
		c.errorf("%q: %v", path, err)
		return
	}
	want := sortedChildren(in)
	if len(entries) != len(want) {
		c.errorf("%q: %d names, want %d", path, len(entries), len(want))
		return
	}
	for i, e := range entries {
		kind := want[i].Inode.Mode & typeMask
		if e.Name() != want[i].Name || kindOf(e.Type()) != kind {
			c.errorf("%q: %q of type %v, want %q of type %o", path, e.Name(), e.Type(), want[i].Name, kind)
			continue
		}
		c.compare(path+"/"+e.Name(), want[i].Inode)
	}
	if _, err := os.Lstat(path + "/no such name"); !errors.Is(err, fs.ErrNotExist) {
		c.errorf("%q: name that is not there: %v", path, err)
	}
}

func kindOf(mode fs.FileMode) uint32 {
	switch {
	case mode&fs.ModeDir != 0:
		return typeDir
	case mode&fs.ModeSymlink != 0:
		return typeSymlink
	case mode&fs.ModeCharDevice != 0:
		return typeChar
	case mode&fs.ModeDevice != 0:
		return typeBlock
	case mode&fs.ModeNamedPipe != 0:
		return typeFIFO
	case mode&fs.ModeSocket != 0:
		return typeSocket
	}
	return typeRegular
}

func (c *comparison) data(path string, in *Inode) {
	if c.files++; c.files%c.every != 0 {
		return
	}
	got, err := readAll(path, in.Size)
	if err != nil {
		c.errorf("%q: %v", path, err)
		return
	}
	var want []byte
	if in.Size > 0 {
		want = c.devices[in.Device][in.Offset:][:in.Size]
	}
	if !bytes.Equal(got, want) {
		c.errorf("%q: other bytes: %d, want %d: %.40q, want %.40q", path, len(got), len(want), got, want)
	}
}

// readAll reads a file of about size bytes, with few system calls.
func readAll(path string, size int64) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size+1)
	n, err := syscall.Read(fd, b)
	return b[:max(n, 0)], errors.Join(err, syscall.Close(fd))
}

func (c *comparison) xattrs(path string, in *Inode) {
	names, err := xattrCall(c.buf[:], syscall.SYS_LLISTXATTR, path, "")
	if err != nil {
		c.errorf("%q: list xattrs: %v", path, err)
		return
	}
	listed := strings.FieldsFunc(names, func(r rune) bool { return r == 0 })
	slices.Sort(listed)
	var want []string
	for _, x := range in.Xattrs {
		want = append(want, x.Name)
		value, err := xattrCall(c.buf[:], syscall.SYS_LGETXATTR, path, x.Name)
		if err != nil || value != x.Value {
			c.errorf("%q: xattr %q is %.60q, want %.60q: %v", path, x.Name, value, x.Value, err)
		}
	}
	slices.Sort(want)
	if !slices.Equal(listed, want) {
		c.errorf("%q: xattrs %q, want %q", path, listed, want)
	}
}

// xattrCall is llistxattr(2), or lgetxattr(2) where there is a name: the
// standard library has only those that follow symlinks.
func xattrCall(buf []byte, number uintptr, path, name string) (string, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return "", err
	}
	a2, a3, a4 := uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), uintptr(0)
	n, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	if name != "" {
		a2, a3, a4 = uintptr(unsafe.Pointer(n)), a2, a3
	}
	got, _, errno := syscall.Syscall6(number, uintptr(unsafe.Pointer(p)), a2, a3, a4, 0, 0)
	if errno != 0 {
		return "", errno
	}
	return string(buf[:got]), nil
}

// large has 120,000 files, of which 100,000 are in one directory.
func large() *Image {
	number := 0
	file := func() *Inode {
		number++
		return &Inode{
			Mode: typeRegular | 0o644, UID: uint32(number), GID: 100000, Sec: 1500000000 + int64(number), Nsec: uint32(number),
			Size: int64(number%3) * 2100, Offset: int64(number%250) * BlockSize,
		}
	}
	root := dir(nil)
	add := func(name string, n int) {
		d := dir(nil)
		for i := range n {
			d.Children = append(d.Children, Dirent{fmt.Sprintf("entry-%x-%d", i*2654435761, i), file()})
		}
		root.Children = append(root.Children, Dirent{name, d})
	}
	add("one", 100000)
	for i := range 200 {
		add(fmt.Sprint("many", i), 100)
	}
	return &Image{Root: root, Devices: []Device{{Tag: "sha256:large", Blocks: 256}}}
}

func TestKernelMountsManyFiles(t *testing.T) {
	img := large()
	image, devices := files(t, img, t.TempDir())
	dir := mountImage(t, image, devices)
	start := time.Now()
	compareMount(t, img, dir, 10)
	st, err := os.Stat(filepath.Join(dir, "one"))
	t.Logf("compared in %v; directory of %d bytes: %v", time.Since(start), st.Size(), err)
}
