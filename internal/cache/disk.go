package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/sys"
)

// file is one open file of an object.
type file interface {
	// ReadAt and WriteAt are io.ReaderAt's and io.WriterAt's.
	io.ReaderAt
	io.WriterAt
	// Datasync returns nil only when all that was written before is durable.
	Datasync() error
	// Stat tells what the file is now.
	Stat() (fileStat, error)
	Close() error
}

// fileStat is what the cache asks of a file.
type fileStat struct {
	size  int64
	inode uint64
	birth int64 // nanoseconds since 1970, 0 where it is not recorded
	disk  int64 // bytes allocated
}

// layout is implemented by files that know where they have holes.
type layout interface {
	// NextData and NextHole are sys.NextData and sys.NextHole.
	NextData(off int64) (int64, error)
	NextHole(off int64) (int64, error)
	// Truncate makes the file size bytes long; what is added is a hole.
	Truncate(size int64) error
	// Settle makes durable what was written, and what is read afterwards is
	// what disk has: after a failed sync the page cache may say otherwise.
	Settle() error
}

// disk is the files below a cache root, named by paths relative to it.
type disk interface {
	// Open opens an existing file; errors.Is(err, os.ErrNotExist) where
	// there is none.
	Open(path string) (file, error)
	// Create makes an empty file, or empties it.
	Create(path string, perm os.FileMode) (file, error)
	// Rename moves a file over what may be there, or a directory.
	Rename(from, to string) error
	// Remove removes a file, or a directory with all in it, if it exists.
	Remove(path string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
}

// directories is the rest of what a root does on disk.
type directories interface {
	// Mkdir makes a directory; made is false where it exists.
	Mkdir(path string) (made bool, err error)
	// Names lists a directory, in order; none where it does not exist.
	Names(path string) ([]string, error)
}

type fileTree interface {
	disk
	directories
}

// osDisk is the files below a directory of this machine.
type osDisk struct {
	dir      string
	readOnly bool
}

func (d osDisk) path(p string) string { return filepath.Join(d.dir, p) }

func (d osDisk) Open(path string) (file, error) {
	flag := os.O_RDWR
	if d.readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(d.path(path), flag, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDisk) Create(path string, perm os.FileMode) (file, error) {
	f, err := os.OpenFile(d.path(path), os.O_RDWR|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return nil, err
	}
	// The umask does not apply: a reader of an attached file is anybody.
	if err := f.Chmod(perm); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f}, nil
}

func (d osDisk) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d osDisk) Remove(path string) error { return os.RemoveAll(d.path(path)) }

func (d osDisk) SyncDir(path string) error {
	f, err := os.Open(d.path(path))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d osDisk) Mkdir(path string) (bool, error) {
	err := os.Mkdir(d.path(path), 0o700)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

func (d osDisk) Names(path string) ([]string, error) {
	entries, err := os.ReadDir(d.path(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// osFile is a file of this machine.
type osFile struct{ *os.File }

func (f osFile) raw() int { return int(f.Fd()) }

func (f osFile) Datasync() error { return sys.Datasync(f.raw()) }

func (f osFile) Stat() (fileStat, error) {
	st, err := f.File.Stat()
	if err != nil {
		return fileStat{}, err
	}
	inode, err := sys.InodeOf(f.raw())
	if err != nil {
		return fileStat{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	birth, err := sys.Birth(f.raw())
	if err != nil {
		return fileStat{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	onDisk, err := sys.AllocatedBytes(f.raw())
	if err != nil {
		return fileStat{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return fileStat{size: st.Size(), inode: inode.Ino, birth: birth, disk: onDisk}, nil
}

func (f osFile) NextData(off int64) (int64, error) { return sys.NextData(f.raw(), off) }
func (f osFile) NextHole(off int64) (int64, error) { return sys.NextHole(f.raw(), off) }

func (f osFile) Settle() error {
	if err := sys.Datasync(f.raw()); err != nil {
		return err
	}
	return sys.Uncache(f.raw())
}
