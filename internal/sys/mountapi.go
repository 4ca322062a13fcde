package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The mount calls of Linux 5.2 (fsopen(2), fsconfig(2), fsmount(2), move_mount(2)),
// one function each. They need CAP_SYS_ADMIN.

// Fsopen begins a new mount of that filesystem type. ENODEV, wrapped: the
// kernel does not have the type.
func Fsopen(kind string) (*FD, error) {
	raw, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("begin a mount of type %s: %w", kind, err)
	}
	return NewFD(raw), nil
}

// FsconfigFlag sets an option that has no value, such as ro.
func FsconfigFlag(context *FD, key string) error {
	if err := unix.FsconfigSetFlag(context.Int(), key); err != nil {
		return fmt.Errorf("set mount option %s: %w", key, err)
	}
	return nil
}

// FsconfigString sets an option. The value has at most 255 bytes (EINVAL
// otherwise: strndup_user of 256 in fs/fsopen.c, Linux 6.18); a longer path is
// given as /proc/self/fd/N.
func FsconfigString(context *FD, key, value string) error {
	if err := unix.FsconfigSetString(context.Int(), key, value); err != nil {
		return fmt.Errorf("set mount option %s to %s: %w", key, value, err)
	}
	return nil
}

// FsconfigCreate makes the superblock: here the kernel reads the image and
// opens its devices.
func FsconfigCreate(context *FD) error {
	if err := unix.FsconfigCreate(context.Int()); err != nil {
		return fmt.Errorf("create the mount: %w", err)
	}
	return nil
}

// Fsmount makes a mount of the superblock, which lies nowhere yet: closing
// it unmounts it. attributes are MOUNT_ATTR_ bits of linux/mount.h.
func Fsmount(context *FD, attributes int) (*FD, error) {
	raw, err := unix.Fsmount(context.Int(), unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("make the mount: %w", err)
	}
	return NewFD(raw), nil
}

// MoveMount puts a mount that Fsmount has made onto target. It stays when
// tree is closed.
func MoveMount(tree *FD, target string) error {
	err := unix.MoveMount(tree.Int(), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount onto %s: %w", target, err)
	}
	return nil
}

// Attributes for Fsmount.
const (
	MountReadOnly = unix.MOUNT_ATTR_RDONLY
	MountNoSUID   = unix.MOUNT_ATTR_NOSUID
	MountNoDev    = unix.MOUNT_ATTR_NODEV
)
