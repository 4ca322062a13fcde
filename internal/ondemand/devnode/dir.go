package devnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
	"github.com/lacunafs/lacuna/internal/sys"
)

// ErrNoObject: no file of the bound directory has this id.
var ErrNoObject = errors.New("no such object in the bound directory")

// Skipped is an entry of the directory that is not served.
type Skipped struct {
	Name, Reason string
}

// Dir is a directory whose regular files are served. The set of files, their
// sizes and their inodes are those of the moment when it is opened.
type Dir struct {
	path    string
	inode   sys.Inode
	objects []*Object // in the order of their names
	byID    map[ondemand.ObjectID]*Object
	skipped []Skipped
	record  *record
}

// OpenDir opens every regular file of the directory for reading and writing.
// This must come before the files are marked, so that writing through these
// descriptors raises no events.
//
// What is present comes from the files' holes, or, where inherited is not nil,
// from the Record of an earlier incarnation, which OpenDir then owns: files that
// have come or changed since it was made are skipped.
func OpenDir(path string, inherited *sys.FD) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	d := &Dir{path: path, byID: map[ondemand.ObjectID]*Object{}}
	if err = d.open(); err == nil {
		err = d.loadPresence(inherited)
	} else if inherited != nil {
		err = errors.Join(err, inherited.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", path, err), d.Close())
	}
	return d, nil
}

func (d *Dir) open() error {
	own, err := sys.OpenPath(d.path)
	if err != nil {
		return err
	}
	d.inode, err = sys.InodeOf(own.Int())
	if err := errors.Join(err, own.Close()); err != nil {
		return err
	}
	if err := checkBlocks(d.path); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	byInode := map[sys.Inode]string{}
	for _, entry := range entries {
		name := entry.Name()
		if reason := unsuited(entry); reason != "" {
			d.skip(name, reason)
			continue
		}
		o, err := openObject(d.path, name)
		if err != nil {
			d.skip(name, err.Error())
			continue
		}
		if first, twice := byInode[o.inode]; twice {
			d.skip(name, "another name of "+first)
			if err := o.file.Close(); err != nil {
				return err
			}
			continue
		}
		byInode[o.inode] = name
		d.objects = append(d.objects, o)
		d.byID[o.id] = o
	}
	return nil
}

// ErrLargeBlocks: the filesystem has blocks larger than ondemand.BlockSize. A
// write of one of ours fills the rest of such a block with zeros, and it would be
// taken for data when the directory is bound again.
var ErrLargeBlocks = errors.New("filesystem has too large blocks")

func checkBlocks(path string) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if st.Bsize > ondemand.BlockSize {
		return fmt.Errorf("%w: %d bytes, at most %d are served: its holes do not tell what was written", ErrLargeBlocks, st.Bsize, ondemand.BlockSize)
	}
	return nil
}

func (d *Dir) skip(name, reason string) { d.skipped = append(d.skipped, Skipped{name, reason}) }

// unsuited says why an entry cannot be served, or nothing.
func unsuited(entry fs.DirEntry) string {
	switch t := entry.Type(); {
	case t == fs.ModeDir:
		return "a directory"
	case t == fs.ModeSymlink:
		return "a symbolic link"
	case t != 0:
		return "not a regular file"
	case len(entry.Name()) > proto.MaxPath:
		return fmt.Sprintf("name longer than %d bytes", proto.MaxPath)
	}
	return ""
}

func openObject(dir, leaf string) (*Object, error) {
	file, err := os.OpenFile(filepath.Join(dir, leaf), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	o := &Object{leaf: leaf, file: file}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err == nil {
		err = o.withFD(func(raw int) (err error) { o.inode, err = sys.InodeOf(raw); return err })
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	o.presence = ondemand.NewPresence(info.Size())
	name := strconv.QuoteToGraphic(leaf)
	if name == `"`+leaf+`"` {
		name = leaf
	}
	o.id = ondemand.ObjectID(fmt.Sprintf("bind:%d:%d:%s", o.inode.Dev, o.inode.Ino, name))
	return o, nil
}

// Path is the directory's absolute path.
func (d *Dir) Path() string { return d.path }

// Objects are the files that are served, by name. The caller does not change the slice.
func (d *Dir) Objects() []*Object { return d.objects }

// Object finds the file that has the id.
func (d *Dir) Object(id ondemand.ObjectID) (*Object, error) {
	if o := d.byID[id]; o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoObject, id)
}

// Skipped are the entries that are not served. They stay what they are: holes
// in them read as zeros.
func (d *Dir) Skipped() []Skipped { return d.skipped }

// Record is the memory that holds the presence of all files, for the keeper:
// it lives as long as anybody holds it. The caller does not close it.
func (d *Dir) Record() *sys.FD { return d.record.fd }

// is tells whether path leads to the directory.
func (d *Dir) is(path string) (bool, error) {
	fd, err := sys.OpenPath(path)
	if err != nil {
		return false, err
	}
	inode, err := sys.InodeOf(fd.Int())
	return inode == d.inode, errors.Join(err, fd.Close())
}

// Close closes the files. The Server and the front end have ended before.
func (d *Dir) Close() error {
	var errs []error
	for _, o := range d.objects {
		errs = append(errs, o.file.Close())
	}
	if d.record != nil {
		errs = append(errs, d.record.close())
	}
	return errors.Join(errs...)
}
