package cache

import (
	"errors"
	"fmt"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNoObject: the root has no such object.
	ErrNoObject = errors.New("no such object")
	// ErrAmbiguous: a prefix names more than one object.
	ErrAmbiguous = errors.New("prefix names more than one object")
	// ErrMismatch: there is an object of this id that is something else: of
	// another size or digest, or from another source.
	ErrMismatch = errors.New("object in the cache is another one")
	// ErrClosed: the object or root has been closed.
	ErrClosed = errors.New("closed")
	// ErrReadOnly: the root was opened with OpenRootReadOnly.
	ErrReadOnly = errors.New("cache root is open read-only")
	// ErrIncomplete: the operation is for complete objects.
	ErrIncomplete = errors.New("object is not complete")
	// ErrLost: what was filled since the last good checkpoint could not be made durable,
	// and is missing again. What was read of it meanwhile need not have been right.
	ErrLost = errors.New("what was written is lost")
	// ErrCorrupt: a file of the cache is not what was written there, and
	// nothing can be derived in its place.
	ErrCorrupt = errors.New("corrupt")
	// ErrBadFill: the range of a fill is not whole blocks of the object. It
	// is the caller's mistake.
	ErrBadFill = errors.New("not whole blocks of the object")
	// ErrBadMeta: the description of an object is not valid.
	ErrBadMeta = errors.New("invalid description")
)

// InUseError says that another instance holds a cache root.
type InUseError struct {
	Dir string // the cache root
	PID int    // the holder; 0 where its lock file does not say
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("cache root %s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("cache root %s is in use by process %d", e.Dir, e.PID)
}

// FilesystemError says that a cache root cannot lie where it was asked for.
type FilesystemError struct {
	Dir  string // the cache root
	Type string // the filesystem that it is on
	// BlockSize is that of the filesystem, where it is what stands in the way.
	BlockSize int64
}

func (e *FilesystemError) Error() string {
	if e.BlockSize != 0 {
		return fmt.Sprintf("cache root %s is on %s with blocks of %d bytes: writing one block of %d bytes fills the others of a larger one with zeros, and what is a hole could not be told from data", e.Dir, e.Type, e.BlockSize, ondemand.BlockSize)
	}
	return fmt.Sprintf("cache root %s is on %s: that filesystem has no pre-content events, so nothing could stop a read of a missing range (the kernel has them on ext4, xfs and btrfs)", e.Dir, e.Type)
}

// Hint names the next step.
func (e *FilesystemError) Hint() string {
	if e.BlockSize != 0 {
		return fmt.Sprintf("choose a directory on a filesystem with blocks of at most %d bytes with --root", ondemand.BlockSize)
	}
	return "choose a directory on ext4, xfs or btrfs with --root"
}

// VersionError says that a file was written by a later version of the project.
// Nothing is changed or removed then.
type VersionError struct {
	Path    string // relative to the cache root
	Version uint64 // that the file has
	Known   uint64 // the latest that this program reads
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, and this program reads only up to %d", e.Path, e.Version, e.Known)
}

// Hint names the next step.
func (e *VersionError) Hint() string {
	return "use the newer program that wrote this cache, or another --root"
}
