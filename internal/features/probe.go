package features

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

const capSysAdmin = "CAP_SYS_ADMIN"

// HaveFanotifyPreContent probes for events before reads of files below dir, or
// below dir's nearest ancestor where dir does not exist yet: it makes a group
// and marks a file of its own there. A sure no names the file system's type
// where another file system would do.
func (p *Prober) HaveFanotifyPreContent(dir string) error {
	dir, dev, err := nearestDevice(dir)
	if err != nil {
		return err
	}
	return p.once(key{FanotifyPreContent, dev}, func() error { return probePreContent(dir) })
}

func probePreContent(dir string) (err error) {
	group, err := sys.FanotifyInit()
	if err != nil {
		return preContentInit(err)
	}
	defer func() { err = errors.Join(err, group.Close()) }()

	file, err := os.CreateTemp(dir, ".lacuna-probe-*")
	if err != nil {
		return fmt.Errorf("probe for %s in %s: %w", FanotifyPreContent, dir, err)
	}
	fd, err := sys.DupAbove(int(file.Fd()), 3)
	// Without its name, nobody can open the file that is about to be marked,
	// and nothing of it stays when this process dies.
	err = errors.Join(err, os.Remove(file.Name()), file.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("probe for %s in %s: %w", FanotifyPreContent, dir, err), closeIf(fd))
	}
	defer func() { err = errors.Join(err, fd.Close()) }()
	return preContentMark(dir, sys.FanotifyMark(group, fd))
}

// preContentInit is the meaning of FanotifyInit's error.
func preContentInit(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		// Also what a seccomp filter answers, so not a sure no.
		return &PrivilegeError{Feature: FanotifyPreContent, Capability: capSysAdmin, Err: err}
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOSYS):
		// EINVAL: a flag that this kernel does not know, the newest being
		// FAN_REPORT_FD_ERROR of Linux 6.13. ENOSYS: no CONFIG_FANOTIFY.
		return preContentUnsupported()
	}
	return err
}

// preContentMark is the meaning of FanotifyMark's error.
func preContentMark(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPERM):
		return &PrivilegeError{Feature: FanotifyPreContent, Capability: capSysAdmin, Err: err}
	case errors.Is(err, syscall.EINVAL):
		// Not a bit of the mask that may be asked for: before Linux 6.14, or
		// without the option (fs/notify/fanotify/fanotify_user.c, do_fanotify_mark).
		return preContentUnsupported()
	case errors.Is(err, syscall.EOPNOTSUPP):
		// The file system has no FS_ALLOW_HSM (include/linux/fs.h).
		typ, typErr := sys.FilesystemType(dir)
		if typErr != nil {
			return errors.Join(err, typErr)
		}
		return &UnsupportedError{
			Feature: FanotifyPreContent, Filesystem: typ, Needs: "ext4, xfs or btrfs; " + dir + " is on " + typ,
		}
	}
	return err
}

func preContentUnsupported() error {
	return &UnsupportedError{
		Feature: FanotifyPreContent,
		Needs:   "Linux 6.14 or newer with CONFIG_FANOTIFY_ACCESS_PERMISSIONS; this is " + Release(),
	}
}

// HaveMountAPI probes for open_tree, mount_setattr and move_mount: it clones
// the mount of a file of its own and sets it read-only, but gives it a target
// that does not exist, so that nothing is ever mounted.
func (p *Prober) HaveMountAPI() error {
	return p.once(key{feature: MountAPI}, probeMountAPI)
}

func probeMountAPI() (err error) {
	dir, err := os.MkdirTemp("", "lacuna-probe-*")
	if err != nil {
		return fmt.Errorf("probe for %s: %w", MountAPI, err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	fd, err := sys.OpenPath(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fd.Close()) }()

	err = sys.BindReadOnly(fd, filepath.Join(dir, "none"))
	switch {
	case err == nil:
		return fmt.Errorf("probe for %s: mounted onto a target that does not exist", MountAPI)
	case errors.Is(err, syscall.ENOENT):
		// What is left to fail after all three calls have done their part.
		return nil
	case errors.Is(err, syscall.EPERM):
		return &PrivilegeError{Feature: MountAPI, Capability: capSysAdmin, Err: err}
	case errors.Is(err, syscall.ENOSYS):
		return &UnsupportedError{Feature: MountAPI, Needs: "Linux 5.12 or newer; this is " + Release()}
	}
	return err
}

// nearest is dir, or its nearest ancestor that exists.
func nearest(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", dir, err)
	}
	dir = abs
	for {
		st, err := os.Stat(dir)
		switch {
		case err == nil && st.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
		case !errors.Is(err, fs.ErrNotExist) || dir == "/":
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// nearestDevice is nearest, with the device that it is on.
func nearestDevice(dir string) (found string, dev uint64, err error) {
	dir, err = nearest(dir)
	if err != nil {
		return "", 0, err
	}
	at, err := sys.OpenPath(dir)
	if err != nil {
		return "", 0, err
	}
	inode, err := sys.InodeOf(at.Int())
	return dir, inode.Dev, errors.Join(err, at.Close())
}

func closeIf(fd *sys.FD) error {
	if fd == nil {
		return nil
	}
	return fd.Close()
}
