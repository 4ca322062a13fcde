package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// BindReadOnly mounts the file or directory behind source onto target,
// read-only from the first moment, without devices and set-user-id programs,
// and private, so that it shows nowhere else. source may be an O_PATH descriptor.
// Linux 5.12 (mount_setattr) and CAP_SYS_ADMIN are needed.
func BindReadOnly(source *FD, target string) error {
	raw, err := unix.OpenTree(source.Int(), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("clone the mount of the source for %s: %w", target, err)
	}
	tree := NewFD(raw)
	attr := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	}
	err = unix.MountSetattr(raw, "", unix.AT_EMPTY_PATH, &attr)
	if err != nil {
		err = fmt.Errorf("make the mount for %s read-only: %w", target, err)
	} else if err = unix.MoveMount(raw, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		err = fmt.Errorf("mount onto %s: %w", target, err)
	}
	return errors.Join(err, tree.Close())
}

// Unmount takes the topmost mount off target. EBUSY, wrapped: it is in use.
// With lazy the name goes at once and the mount when its last user does.
func Unmount(target string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(target, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}
