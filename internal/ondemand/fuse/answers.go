package fuse

import (
	"errors"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lacunafs/lacuna/internal/erofs"
)

// valid is how long the kernel may believe what it was told: nothing ever changes.
const valid = 365 * 24 * time.Hour

// answers says what the protocol's requests get. All that would change the tree is the
// kernel's to refuse: the filesystem is mounted read-only.
type answers struct {
	fuse.RawFileSystem
	t *Tree

	mu   sync.Mutex
	next uint64
	dirs map[uint64]*openDir
}

func newAnswers(t *Tree) *answers {
	return &answers{RawFileSystem: fuse.NewDefaultRawFileSystem(), t: t, dirs: make(map[uint64]*openDir)}
}

// String is the name that go-fuse wants.
func (a *answers) String() string { return "lacuna" }

// status is err as the protocol has it.
func status(err error) fuse.Status { return fuse.Status(errnoOf(err)) }

// fill says what stat(2) is to show, as the kernel's EROFS does (fs/erofs/inode.c).
func (a *answers) fill(n *erofs.Node, size int64, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: n.NID, Size: uint64(size), Blocks: (uint64(size) + erofs.BlockSize - 1) / erofs.BlockSize * (erofs.BlockSize / 512),
		Mtime: uint64(n.Sec), Mtimensec: n.Nsec, Atime: uint64(n.Sec), Atimensec: n.Nsec, Ctime: uint64(n.Sec), Ctimensec: n.Nsec,
		Mode: n.Mode, Nlink: n.Nlink, Owner: fuse.Owner{Uid: n.UID, Gid: n.GID},
		Rdev:    n.Rdev.Minor&0xff | n.Rdev.Major<<8 | n.Rdev.Minor&^0xff<<12, // new_encode_dev
		Blksize: erofs.BlockSize,
	}
}

func (a *answers) entry(number uint64, out *fuse.EntryOut) error {
	n, err := a.t.image.Node(number)
	if err != nil {
		return err
	}
	out.NodeId, out.Generation = a.t.idOf(number), 1
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
	a.fill(n, n.DataSize(), &out.Attr)
	return nil
}

// Lookup implements fuse.RawFileSystem. That a name is not there is remembered, too.
func (a *answers) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := a.t.node(h.NodeId)
	if err != nil {
		return status(err)
	}
	e, err := a.t.image.Lookup(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		out.SetEntryTimeout(valid)
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	return status(a.entry(e.NID, out))
}

// Forget implements fuse.RawFileSystem: nothing is remembered.
func (a *answers) Forget(uint64, uint64) {}

// GetAttr implements fuse.RawFileSystem.
func (a *answers) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := a.t.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(valid)
	a.fill(n, n.DataSize(), &out.Attr)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (a *answers) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := a.t.node(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	link, err := a.t.image.Link(n)
	return []byte(link), status(err)
}

// Access implements fuse.RawFileSystem. The kernel checks permissions by itself.
func (a *answers) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Open implements fuse.RawFileSystem: nothing is to be known of open files, so that the
// kernel need not ask again (FUSE_NO_OPEN_SUPPORT, Linux 3.16), and keeps what was read.
func (a *answers) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Read implements fuse.RawFileSystem. What it asks for is present.
func (a *answers) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	parts, err := a.t.locate(in.NodeId, int64(in.Offset), int64(min(in.Size, uint32(len(buf)))))
	if err != nil {
		return nil, status(err)
	}
	if len(a.t.missing(parts)) > 0 {
		return nil, fuse.EIO // it was made missing while it was waited for
	}
	n, err := a.t.read(parts, buf)
	return fuse.ReadResultData(buf[:n]), status(err)
}

// Lseek implements fuse.RawFileSystem: files have no holes, as EROFS shows them.
func (a *answers) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	const seekData, seekHole = 3, 4
	n, err := a.t.node(in.NodeId)
	switch {
	case err != nil:
		return status(err)
	case in.Offset >= uint64(n.DataSize()):
		return fuse.Status(syscall.ENXIO)
	case in.Whence == seekData:
		out.Offset = in.Offset
	case in.Whence == seekHole:
		out.Offset = uint64(n.DataSize())
	default:
		return fuse.EINVAL
	}
	return fuse.OK
}

// GetXAttr implements fuse.RawFileSystem.
func (a *answers) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	list, err := a.xattrs(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	at := slices.IndexFunc(list, func(x erofs.Xattr) bool { return x.Name == name })
	if at < 0 {
		return 0, fuse.ENODATA
	}
	value := list[at].Value
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem.
func (a *answers) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	list, err := a.xattrs(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for _, x := range list {
		names = append(append(names, x.Name...), 0)
	}
	if len(dest) < len(names) {
		return uint32(len(names)), fuse.ERANGE
	}
	return uint32(copy(dest, names)), fuse.OK
}

func (a *answers) xattrs(id uint64) ([]erofs.Xattr, error) {
	n, err := a.t.node(id)
	if err != nil {
		return nil, err
	}
	return a.t.image.Xattrs(n)
}

// StatFs implements fuse.RawFileSystem, as EROFS answers (fs/erofs/super.c, erofs_statfs).
func (a *answers) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Blocks: a.t.blocks, Files: a.t.inodes, Bsize: erofs.BlockSize, Frsize: erofs.BlockSize, NameLen: erofs.MaxName}
	return fuse.OK
}
