package features

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// HaveErofsFileMounts probes for EROFS filesystems that are made of files below
// dir, or below dir's nearest ancestor where dir does not exist yet: it has the
// kernel make one of a file of its own there, and mounts it nowhere. A sure no names
// the file system's type where another file system would do.
func (p *Prober) HaveErofsFileMounts(dir string) error {
	dir, dev, err := nearestDevice(dir)
	if err != nil {
		return err
	}
	return p.once(key{ErofsFileMounts, dev}, func() error { return probeErofs(dir) })
}

func probeErofs(dir string) (err error) {
	file, err := os.CreateTemp(dir, ".lacuna-probe-*")
	if err != nil {
		return fmt.Errorf("probe for %s in %s: %w", ErofsFileMounts, dir, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = file.Write(emptyErofs())
	// Nothing of it stays when this process dies.
	if err := errors.Join(err, os.Remove(file.Name())); err != nil {
		return fmt.Errorf("probe for %s in %s: %w", ErofsFileMounts, dir, err)
	}
	return erofsMeaning(dir, makeErofs(fmt.Sprintf("/proc/self/fd/%d", file.Fd())))
}

// makeErofs has the kernel make a filesystem of the image, and drop it again.
func makeErofs(image string) (err error) {
	context, err := sys.Fsopen("erofs")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, context.Close()) }()
	if err := sys.FsconfigFlag(context, "ro"); err != nil {
		return err
	}
	if err := sys.FsconfigString(context, "source", image); err != nil {
		return err
	}
	return sys.FsconfigCreate(context)
}

// erofsMeaning is the meaning of makeErofs's error.
func erofsMeaning(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPERM):
		return &PrivilegeError{Feature: ErofsFileMounts, Capability: capSysAdmin, Err: err}
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENOSYS):
		// No such filesystem type; before Linux 5.2 no fsopen(2).
		return erofsUnsupported()
	case errors.Is(err, syscall.ENOTBLK):
		// Not a block device, and files will not do: the option is not set, or
		// the file system has no read_folio (erofs_fc_get_tree of
		// fs/erofs/super.c, Linux 6.12), as tmpfs.
		typ, typErr := sys.FilesystemType(dir)
		if typErr != nil {
			return errors.Join(err, typErr)
		}
		switch typ {
		case "ext4", "xfs", "btrfs":
			return erofsUnsupported()
		}
		return &UnsupportedError{Feature: ErofsFileMounts, Filesystem: typ, Needs: "ext4, xfs or btrfs; " + dir + " is on " + typ}
	}
	return err
}

func erofsUnsupported() error {
	return &UnsupportedError{
		Feature: ErofsFileMounts,
		Needs:   "Linux 6.12 or newer with CONFIG_EROFS_FS and CONFIG_EROFS_FS_BACKED_BY_FILE; this is " + Release(),
	}
}

// emptyErofs is a filesystem image of one block with an empty root directory
// (fs/erofs/erofs_fs.h, Linux 5.19).
func emptyErofs() []byte {
	const super, root = 1024, 1152 // where superblock and root inode lie
	b := make([]byte, 4096)
	le := binary.LittleEndian
	le.PutUint32(b[super:], 0xE0F5E1E2) // magic
	b[super+12] = 12                    // log2 of the block size
	le.PutUint16(b[super+14:], root/32) // number of the root inode
	le.PutUint64(b[super+16:], 1)       // inodes
	le.PutUint32(b[super+36:], 1)       // blocks
	le.PutUint16(b[root:], 2<<1)        // compact, data behind the inode
	le.PutUint16(b[root+4:], 0o40555)   // mode
	le.PutUint16(b[root+6:], 2)         // links
	le.PutUint32(b[root+8:], 2*12+3)    // size: two entries, and "." and ".."
	le.PutUint32(b[root+20:], 1)        // inode number for 32-bit programs
	for i, at := range []int{root + 32, root + 44} {
		le.PutUint64(b[at:], root/32)
		le.PutUint16(b[at+8:], uint16(24+i)) // where the name begins
		b[at+10] = 2                         // a directory
	}
	copy(b[root+56:], "...")
	return b
}
