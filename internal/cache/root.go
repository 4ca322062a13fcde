package cache

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Names below a cache root.
const (
	objectsDir   = "objects"
	partialDir   = "partial"
	dataName     = "data"
	presenceName = "presence"
	metaName     = "object.json"
	newSuffix    = ".new"
)

// RootOptions are what OpenRoot may be told. The zero value takes the lock and
// insists on a filesystem that fanotify can serve.
type RootOptions struct {
	// Lock is a descriptor of the lock file that holds the lock already, as
	// a keeper hands it over; nil to take the lock.
	Lock *sys.FD
	// AllowAnyFilesystem is for front ends that need no pre-content events.
	AllowAnyFilesystem bool
	// Holder is the pid that the lock file names; 0 is this process.
	Holder int
	// OnError is told of errors that no call returns: a checkpoint that
	// failed in the background. It is called from that goroutine and must not
	// block. nil to forget them.
	OnError func(id ondemand.ObjectID, err error)
}

// Root is a cache root: a directory of objects that one instance at a time uses.
type Root struct {
	dir      string
	disk     fileTree
	readOnly bool
	onError  func(ondemand.ObjectID, error)
	lock     *sys.FD // nil when read-only
	lastBeat time.Time
	saver    *checkpointer // nil when read-only

	mu     sync.Mutex
	open   map[ondemand.ObjectID]*Object
	serial uint64 // makes names in partial/ distinct
	closed bool
}

// OpenRoot opens the cache root dir, making it (permissions 0700) where it does
// not exist, and removes what a crash left half made. *InUseError when another
// instance holds it, *FilesystemError when fanotify cannot serve files there.
func OpenRoot(dir string, o RootOptions) (*Root, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache root: %w", err)
	}
	if !o.AllowAnyFilesystem {
		if err := checkFilesystem(dir); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open cache root: %w", err)
	}
	lock, lastBeat, err := takeLock(dir, o.Lock, o.Holder)
	var inUse *InUseError
	if errors.As(err, &inUse) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("open cache root %s: %w", dir, err)
	}
	r, err := newRoot(osDisk{dir: dir}, o.OnError)
	if err != nil {
		if o.Lock == nil {
			err = errors.Join(err, lock.Close())
		}
		return nil, fmt.Errorf("open cache root %s: %w", dir, err)
	}
	r.dir, r.lock, r.lastBeat = dir, lock, lastBeat
	return r, nil
}

// checkFilesystem tells whether files below dir, which need not exist yet, can
// raise pre-content events: the filesystems that set FS_ALLOW_HSM (Linux 6.14:
// ext4, xfs, btrfs). Their blocks must be no larger than ours, or a hole in a data
// file would not tell that a block was never written (findHoles).
func checkFilesystem(dir string) error {
	there := dir
	name, err := sys.FilesystemType(there)
	for errors.Is(err, os.ErrNotExist) && there != filepath.Dir(there) {
		there = filepath.Dir(there)
		name, err = sys.FilesystemType(there)
	}
	if err != nil {
		return fmt.Errorf("open cache root: %w", err)
	}
	switch name {
	case "ext4", "xfs", "btrfs":
	default:
		return &FilesystemError{Dir: dir, Type: name}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(there, &st); err != nil {
		return fmt.Errorf("open cache root: statfs %s: %w", there, err)
	}
	if st.Bsize > ondemand.BlockSize {
		return &FilesystemError{Dir: dir, Type: name, BlockSize: st.Bsize}
	}
	return nil
}

// newRoot opens a root whose lock is held.
func newRoot(d fileTree, onError func(ondemand.ObjectID, error)) (*Root, error) {
	if onError == nil {
		onError = func(ondemand.ObjectID, error) {}
	}
	for _, name := range []string{objectsDir, partialDir} {
		if _, err := d.Mkdir(name); err != nil {
			return nil, err
		}
	}
	left, err := d.Names(partialDir)
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if err := d.Remove(path.Join(partialDir, name)); err != nil {
			return nil, fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	if err := d.SyncDir("."); err != nil {
		return nil, err
	}
	r := &Root{disk: d, onError: onError, open: map[ondemand.ObjectID]*Object{}}
	r.saver = newCheckpointer(checkpointAge, func(o *Object, err error) { onError(o.ID(), err) })
	return r, nil
}

// OpenRootReadOnly opens a cache root to look at it, also beside the instance
// that holds it: it takes no lock and writes nothing.
func OpenRootReadOnly(dir string) (*Root, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache root: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, objectsDir)); err != nil {
		return nil, fmt.Errorf("open cache root: %w", err)
	}
	return &Root{
		dir: dir, disk: osDisk{dir: dir, readOnly: true}, readOnly: true,
		onError: func(ondemand.ObjectID, error) {},
		open:    map[ondemand.ObjectID]*Object{},
	}, nil
}

// Dir is the root's directory, absolute.
func (r *Root) Dir() string { return r.dir }

// Lock is the descriptor that holds the lock, to hand to the keeper; nil when
// the root is open read-only. The root closes it.
func (r *Root) Lock() *sys.FD { return r.lock }

// Beat marks the lock file as of an instance that lives. The daemon calls it
// every second, so that the next instance can tell when this one died.
func (r *Root) Beat() error {
	if r.readOnly {
		return ErrReadOnly
	}
	now := time.Now()
	if err := os.Chtimes(filepath.Join(r.dir, lockName), now, now); err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	return nil
}

// LastBeat is when the instance before this one last called Beat, as found when
// the root was opened; zero where there was none.
func (r *Root) LastBeat() time.Time { return r.lastBeat }

// Close checkpoints and closes all objects and gives up this descriptor of the
// lock. A keeper that holds a duplicate keeps the lock.
func (r *Root) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	objects := make([]*Object, 0, len(r.open))
	for _, o := range r.open {
		objects = append(objects, o)
	}
	r.mu.Unlock()
	if r.saver != nil {
		r.saver.close()
	}
	var errs []error
	for _, o := range objects {
		errs = append(errs, o.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

// objectDir is where the object of this id lies, relative to the root.
func objectDir(id ondemand.ObjectID) string {
	return path.Join(objectsDir, string(id[:2]), string(id))
}

// List returns the ids of all objects, in order.
func (r *Root) List() ([]ondemand.ObjectID, error) {
	return r.list("")
}

// list returns the ids that begin with prefix.
func (r *Root) list(prefix string) ([]ondemand.ObjectID, error) {
	folders, err := r.disk.Names(objectsDir)
	if err != nil {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	var ids []ondemand.ObjectID
	for _, folder := range folders {
		if len(folder) != 2 || !overlap(folder, prefix) {
			continue
		}
		names, err := r.disk.Names(path.Join(objectsDir, folder))
		if err != nil {
			return nil, fmt.Errorf("list objects: %w", err)
		}
		for _, name := range names {
			id := ondemand.ObjectID(name)
			if _, err := parseKey(id); err == nil && name[:2] == folder && strings.HasPrefix(name, prefix) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func overlap(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }

// Find returns the one object whose key begins with prefix: ErrNoObject where
// none does, ErrAmbiguous where several do.
func (r *Root) Find(prefix string) (ondemand.ObjectID, error) {
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", fmt.Errorf("find object %q: %w", prefix, ErrNoObject)
	}
	ids, err := r.list(prefix)
	switch {
	case err != nil:
		return "", fmt.Errorf("find object %q: %w", prefix, err)
	case len(ids) == 0:
		return "", fmt.Errorf("find object %q: %w", prefix, ErrNoObject)
	case len(ids) > 1:
		return "", fmt.Errorf("find object %q: %d objects: %w", prefix, len(ids), ErrAmbiguous)
	}
	return ids[0], nil
}

// partialName is a new name in partial/ for an object.
func (r *Root) partialName(id ondemand.ObjectID) string {
	r.serial++
	return path.Join(partialDir, fmt.Sprintf("%s.%d", id, r.serial))
}

// Remove removes an object, closing it if it is open; ErrNoObject where there
// is none. After a crash it is there, whole, or gone.
func (r *Root) Remove(id ondemand.ObjectID) error {
	if _, err := parseKey(id); err != nil {
		return err
	}
	if r.readOnly {
		return ErrReadOnly
	}
	r.mu.Lock()
	o := r.open[id]
	r.mu.Unlock()
	if o != nil {
		// What the close could not make durable is removed anyway.
		o.discard()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.open[id] != nil {
		return fmt.Errorf("remove object %s: it was opened again", id.Short())
	}
	if err := r.removeLocked(id); err != nil {
		return fmt.Errorf("remove object %s: %w", id.Short(), err)
	}
	return nil
}

func (r *Root) removeLocked(id ondemand.ObjectID) error {
	dir, gone := objectDir(id), r.partialName(id)
	if err := r.disk.Rename(dir, gone); errors.Is(err, os.ErrNotExist) {
		return ErrNoObject
	} else if err != nil {
		return err
	}
	return errors.Join(r.disk.SyncDir(path.Dir(dir)), r.disk.Remove(gone))
}
