package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// EROFS is a file-backed EROFS filesystem that is to be made, read-only: Linux 6.12 with
// CONFIG_EROFS_FS_BACKED_BY_FILE, and CAP_SYS_ADMIN.
type EROFS struct {
	// Image is the path of the filesystem image. No event stops the kernel's
	// reads of it: it must be complete.
	Image string
	// Devices are the paths of the extra devices, in the order of the image's
	// device table: in another one the kernel returns wrong bytes.
	Devices []string
	// ReadAhead is how far the kernel reads ahead in a file, in KiB; 0 leaves its
	// default of 128.
	ReadAhead int
	// Direct asks the kernel to read the devices past their page cache, where it can:
	// what is read is then in memory once, not twice. It suits devices that are
	// complete: what was just written would go to the disk and come back. A read
	// raises the same events (fs/read_write.c, vfs_iocb_iter_read).
	Direct bool
	// Attributes are sys.Mount* bits besides MountReadOnly.
	Attributes int
}

// longest value that fsconfig(2) takes.
const longest = 255

// Filesystem is an EROFS filesystem that is made and lies nowhere yet. It ends
// with Close, unless it was moved somewhere.
type Filesystem struct {
	// Superblock names the filesystem for as long as it lives: see Alive.
	Superblock string
	// Device is st_dev of its files.
	Device uint64

	tree *sys.FD
}

// makeTries is how often Make tries again where another EROFS filesystem was
// made at the same time, so that it is not told which superblock is which.
const makeTries = 10

// Make makes the filesystem. Whatever is to stop reads of the devices must have
// marked them before: the kernel opens them here.
func (e EROFS) Make() (*Filesystem, error) {
	for range makeTries {
		before, err := superblocks()
		if err != nil {
			return nil, err
		}
		tree, err := e.create()
		if err != nil {
			return nil, err
		}
		f := &Filesystem{tree: tree}
		f.Superblock, err = newSuperblock(before)
		if err == nil && f.Superblock == "" {
			if err := f.Close(); err != nil {
				return nil, err
			}
			continue
		}
		if err == nil {
			err = f.describe(e.ReadAhead)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
	return nil, fmt.Errorf("mount filesystem image %s: others make EROFS mounts all the time", e.Image)
}

// describe finds the device number and sets the read-ahead.
func (f *Filesystem) describe(readAhead int) error {
	inode, err := sys.InodeOf(f.tree.Int())
	if err != nil {
		return err
	}
	f.Device = inode.Dev
	if readAhead == 0 {
		return nil
	}
	name := filepath.Join(bdiDir, f.Superblock, "read_ahead_kb")
	if err := os.WriteFile(name, strconv.AppendInt(nil, int64(readAhead), 10), 0); err != nil {
		return fmt.Errorf("set read-ahead: %w", err)
	}
	return nil
}

// MoveTo mounts the filesystem on the directory target.
func (f *Filesystem) MoveTo(target string) error { return sys.MoveMount(f.tree, target) }

// Close lets go of the filesystem.
func (f *Filesystem) Close() error { return f.tree.Close() }

// create makes the mount, which lies nowhere yet.
func (e EROFS) create() (tree *sys.FD, err error) {
	fsc, err := sys.Fsopen("erofs")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fsc.Close()) }()
	if err := sys.FsconfigFlag(fsc, "ro"); err != nil {
		return nil, err
	}
	var held []*sys.FD // the kernel looks names up when the superblock is made
	defer func() {
		for _, fd := range held {
			err = errors.Join(err, fd.Close())
		}
	}()
	set := func(key, path string) error {
		if len(path) > longest {
			fd, err := sys.OpenPath(path)
			if err != nil {
				return err
			}
			held = append(held, fd)
			path = fmt.Sprintf("/proc/self/fd/%d", fd.Int())
		}
		return sys.FsconfigString(fsc, key, path)
	}
	direct, err := e.direct()
	if err != nil {
		return nil, err
	}
	if direct {
		// EINVAL: Linux before 6.13, which knows no other reads (6422cde1b0d5).
		if err := sys.FsconfigFlag(fsc, "directio"); err != nil && !errors.Is(err, syscall.EINVAL) {
			return nil, err
		}
	}
	if err := set("source", e.Image); err != nil {
		return nil, err
	}
	for _, d := range e.Devices {
		if err := set("device", d); err != nil {
			return nil, err
		}
	}
	if err := sys.FsconfigCreate(fsc); err != nil {
		return nil, fmt.Errorf("mount filesystem image %s: %w", e.Image, err)
	}
	return sys.Fsmount(fsc, sys.MountReadOnly|e.Attributes)
}

// block is what EROFS reads of a device, and where, in multiples.
const block = 4096

// direct tells whether the devices are to be read directly, and can be. Where their
// disk asks for more than whole blocks, each such read would fail
// (fs/iomap/direct-io.c, iomap_dio_bio_iter).
func (e EROFS) direct() (bool, error) {
	if !e.Direct {
		return false, nil
	}
	for _, d := range e.Devices {
		n, err := sys.DirectAlignment(d)
		if err != nil {
			return false, fmt.Errorf("mount filesystem image %s: %w", e.Image, err)
		}
		if n == 0 || n > block {
			return false, nil
		}
	}
	return true, nil
}

// bdiDir has a directory for each superblock with a read-ahead of its own. EROFS
// calls its own erofs-N, N counting up (fs/erofs/super.c, super_setup_bdi).
const bdiDir = "/sys/class/bdi"

func superblocks() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(bdiDir, "erofs-*"))
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	return names, nil
}

// newSuperblock is the one that was not there before, if it is one.
func newSuperblock(before []string) (string, error) {
	after, err := superblocks()
	if err != nil {
		return "", err
	}
	fresh := slices.DeleteFunc(after, func(name string) bool { return slices.Contains(before, name) })
	if len(fresh) != 1 {
		return "", nil
	}
	return fresh[0], nil
}

// Alive tells whether the filesystem of an EROFS mount lives: its files are open
// or it is mounted somewhere, in this mount namespace or another.
func Alive(superblock string) (bool, error) {
	_, err := os.Stat(filepath.Join(bdiDir, superblock))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
