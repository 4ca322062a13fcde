// Package erofs writes and reads EROFS filesystem images that hold metadata
// only: inodes, directories, symlink targets and xattrs. The bytes of regular
// files lie in extra devices, which the image names by their tags.
//
// The bytes of a regular file are one run of blocks of a device, and the file is one
// chunk, whose index names the device and the block. (The devices also have places
// in one address space, behind the image, mapped_blkaddr of fs/erofs/erofs_fs.h;
// but a file that is found through it is read from the device folio by folio,
// because erofs_map_dev makes the address one of the device, and the next folio's
// is none: erofs_fileio_scan_folio of fs/erofs/fileio.c, Linux 6.18. A read of
// 64 KiB is then 16 reads, and events, instead of one.) The kernel is given the
// devices in the order of Image.Devices.
//
// What is written needs Linux 5.19 and nothing newer: extended inodes (compact
// ones where they say the same), inline and shared xattrs, a device table, a
// superblock checksum. The same tree gives the same bytes, whatever the order
// of its children; the UUID is a digest of the rest.
//
//	superblock at 1024, root inode, device table, other inodes
//	shared xattrs
//	blocks of directories and long symlinks that do not fit behind their inodes
//
// Open reads what Write writes, and also what mkfs.erofs makes without
// compression. It takes no byte of the image for granted: what does not fit
// is ErrCorrupt, and memory stays in proportion to the size of the image.
package erofs

// BlockSize is the unit of addresses, and the only block size there is here.
const BlockSize = 4096

// Limits of what an image can say.
const (
	MaxName    = 255               // bytes of a name (EROFS_NAME_LEN)
	MaxLink    = 4095              // bytes of a symlink target (PATH_MAX of limits.h, less its NUL)
	MaxTag     = 64                // bytes of a device tag (erofs_deviceslot)
	MaxDevices = 1<<16 - 1         // extra_devices is 16 bits wide
	MaxMajor   = 1<<12 - 1         // new_encode_dev of include/linux/kdev_t.h
	MaxMinor   = 1<<20 - 1         // the same
	maxBlocks  = uint64(1)<<32 - 1 // block addresses are 32 bits wide, all ones is no address
)

// Image is a whole filesystem image.
type Image struct {
	// Root is the root directory.
	Root *Inode
	// Devices hold the bytes of the regular files, in the order in which the
	// kernel is told of them.
	Devices []Device
}

// Device is an extra device.
type Device struct {
	// Tag names the object; 1 to MaxTag bytes without NUL.
	Tag string
	// Blocks is the length in units of BlockSize.
	Blocks uint64
}

// Inode is a file of any type. Where two names have the same *Inode they are
// hard links of each other. Fields that do not apply to the type are ignored,
// but for Children and Link, which must be empty.
type Inode struct {
	// Mode is st_mode: type and permission bits as inode(7) has them.
	Mode uint32
	// UID and GID are the owner.
	UID, GID uint32
	// Sec and Nsec are the time of the last modification, since 1970.
	Sec  int64
	Nsec uint32
	// Rdev is what a block or character device stands for.
	Rdev Rdev
	// Size of a regular file in bytes. An empty one has no data.
	Size int64
	// Device is the index of the device with the data of a regular file, and
	// Offset where in it they begin, a multiple of BlockSize.
	Device int
	Offset int64
	// Link is the target of a symlink.
	Link string
	// Xattrs with their full names, in any order.
	Xattrs []Xattr
	// Children of a directory, in any order, without "." and "..".
	Children []Dirent
}

// Rdev is a device number.
type Rdev struct{ Major, Minor uint32 }

// Xattr is an extended attribute.
type Xattr struct {
	// Name begins with a prefix that KnowsXattr knows.
	Name string
	// Value has at most 65535 bytes.
	Value string
}

// Dirent is a name in a directory.
type Dirent struct {
	Name  string
	Inode *Inode
}
