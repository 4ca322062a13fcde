package sys

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inode names a file on this machine while it exists.
type Inode struct {
	Dev, Ino uint64
}

// InodeOf is the inode behind the descriptor raw.
func InodeOf(raw int) (Inode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(raw, &st); err != nil {
		return Inode{}, fmt.Errorf("stat descriptor %d: %w", raw, err)
	}
	return Inode{Dev: st.Dev, Ino: st.Ino}, nil
}

// KnownInode is the inode of path as the kernel knows it: whoever serves its
// filesystem, such as a FUSE daemon that hangs, is not asked (statx(2),
// AT_STATX_DONT_SYNC).
func KnownInode(path string) (Inode, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return Inode{}, fmt.Errorf("stat %s: %w", path, err)
	}
	return Inode{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino}, nil
}

// DeviceNumbers splits Dev as /proc/self/mountinfo shows it.
func (i Inode) DeviceNumbers() (major, minor uint32) { return unix.Major(i.Dev), unix.Minor(i.Dev) }

// DeviceNumber is the Dev of files on the device with these numbers.
func DeviceNumber(major, minor uint32) uint64 { return unix.Mkdev(major, minor) }

// OpenPath opens path with O_PATH: a name for the file that raises no events
// and reads nothing.
func OpenPath(path string) (*FD, error) {
	raw, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return NewFD(raw), nil
}

// Datasync makes what was written to the file behind raw durable, with as much
// metadata as reading it back needs.
func Datasync(raw int) error {
	for {
		err := unix.Fdatasync(raw)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sync data: %w", err)
		}
		return nil
	}
}

// NextData is the first offset at or behind off that holds data, and io.EOF
// where only a hole follows. Unwritten extents count as holes.
func NextData(raw int, off int64) (int64, error) {
	n, err := unix.Seek(raw, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, fmt.Errorf("seek data from %d: %w", off, err)
	}
	return n, nil
}

// NextHole is the first offset at or behind off that lies in a hole; the end
// of the file counts as one. io.EOF where off lies behind the end.
func NextHole(raw int, off int64) (int64, error) {
	n, err := unix.Seek(raw, off, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, fmt.Errorf("seek hole from %d: %w", off, err)
	}
	return n, nil
}

// PunchHole frees the blocks in [off, off+n) of the file behind raw.
func PunchHole(raw int, off, n int64) error {
	const flags = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(raw, flags, off, n); err != nil {
		return fmt.Errorf("punch hole [%d,+%d): %w", off, n, err)
	}
	return nil
}

// ErrLocked is returned by TryLock when another open file has the lock.
var ErrLocked = errors.New("locked by another process")

// TryLock takes the exclusive flock of the open file behind raw at once or
// fails with ErrLocked. The lock belongs to the open file: whoever holds a
// duplicate of the descriptor holds the lock.
func TryLock(raw int) error {
	err := unix.Flock(raw, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// FilesystemType names the filesystem that holds path as /proc/filesystems
// does, or gives its magic number (include/uapi/linux/magic.h).
func FilesystemType(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", path, err)
	}
	switch uint64(st.Type) & 0xffffffff {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", nil
	case unix.TMPFS_MAGIC:
		return "tmpfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay", nil
	case unix.FUSE_SUPER_MAGIC:
		return "fuse", nil
	case unix.NFS_SUPER_MAGIC:
		return "nfs", nil
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs", nil
	case unix.EROFS_SUPER_MAGIC_V1:
		return "erofs", nil
	}
	return fmt.Sprintf("%#x", uint64(st.Type)&0xffffffff), nil
}

// FreeBytes is the space left to unprivileged writers on the filesystem that holds path.
func FreeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// AllocatedBytes is how much disk space the file behind raw takes.
func AllocatedBytes(raw int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(raw, &st); err != nil {
		return 0, fmt.Errorf("stat descriptor %d: %w", raw, err)
	}
	return st.Blocks * 512, nil // st_blocks counts 512-byte units (stat(2))
}

// Memfd makes an anonymous file of size bytes that lives as long as anybody
// holds it.
func Memfd(name string, size int64) (*FD, error) {
	raw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memfd %s: %w", name, err)
	}
	fd := NewFD(raw)
	if err := unix.Ftruncate(raw, size); err != nil {
		return nil, errors.Join(fmt.Errorf("size memfd %s: %w", name, err), fd.Close())
	}
	return fd, nil
}

// Mapping is a shared mapping of a whole file.
type Mapping struct {
	// Bytes are the file's; they are gone after Close.
	Bytes []byte
}

// MapShared maps the file behind fd, read-write and shared.
func MapShared(fd *FD) (*Mapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		return nil, fmt.Errorf("stat descriptor %d: %w", fd.Int(), err)
	}
	b, err := unix.Mmap(fd.Int(), 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map descriptor %d: %w", fd.Int(), err)
	}
	return &Mapping{b}, nil
}

// Close ends the mapping. A second call does nothing.
func (m *Mapping) Close() error {
	b := m.Bytes
	if b == nil {
		return nil
	}
	m.Bytes = nil
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap: %w", err)
	}
	return nil
}

// IsRoot tells whether this process runs as uid 0 in its user namespace.
func IsRoot() bool { return syscall.Geteuid() == 0 }

// TempFile makes a file without a name on dir's filesystem; LinkFile gives it one.
// Until then it goes with its last descriptor (open(2), O_TMPFILE).
func TempFile(dir string, mode uint32) (*FD, error) {
	raw, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, fmt.Errorf("make a file in %s: %w", dir, err)
	}
	return NewFD(raw), nil
}

// LinkFile gives the file behind raw the name path, which must be free.
func LinkFile(raw int, path string) error {
	if err := unix.Linkat(unix.AT_FDCWD, ProcPath(raw), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("name a file %s: %w", path, err)
	}
	return nil
}
