// Package file is the source of a regular file of this machine.
//
// The file is opened for each range and holds no descriptor in between, so
// that thousands of blobs cost none. Which bytes it has is told by its size,
// device, inode number, modification time and change time, both in nanoseconds.
// The change time is the one that nobody can set (utimensat(2)), and a new file
// that is given a removed one's inode number begins with one of its own, so a
// birth time would tell no more. It also moves with what leaves the bytes alone:
// a change of owner or permissions, another hard link, a new name; such a file
// counts as changed.
//
// They are compared before a range and after each piece that is read of it:
// write(2) sets the times before it changes the data
// (__generic_file_write_iter, mm/filemap.c), so bytes of a later version do not
// pass. Not noticed are stores through a mapping whose page is dirty already,
// and, before the fine-grained timestamps of Linux 6.13
// (Documentation/filesystems/multigrain-ts.rst), a second change within one
// clock tick; nor a file made anew, with the same inode number, within the tick
// in which the old one last changed.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/lacunafs/lacuna/internal/source"
)

type blob struct {
	path   string
	id     source.Identity
	closed atomic.Bool
}

// Open returns a blob of the regular file at path.
func Open(ctx context.Context, path string) (source.Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	f, id, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	return &blob{path: path, id: id}, nil
}

// Reopen returns a blob of the file at path as it was when id was taken. It
// does not look at the file; a file that has changed since fails each read.
func Reopen(path string, id source.Identity) source.Blob { return &blob{path: path, id: id} }

func (b *blob) Size() int64 { return b.id.Size }

// Identity is the file's size, times, device and inode number.
func (b *blob) Identity() source.Identity { return b.id }

func (b *blob) Close() error {
	b.closed.Store(true)
	return nil
}

func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.open(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", b.path, err)
	}
	return source.Exact(ctx, r, n), nil
}

func (b *blob) open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, err
	}
	if b.closed.Load() {
		return nil, os.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, id, err := open(b.path)
	if err != nil {
		return nil, err
	}
	if id != b.id {
		return nil, errors.Join(source.ErrChanged, f.Close())
	}
	return &reader{SectionReader: io.NewSectionReader(f, off, n), file: f, id: id}, nil
}

// reader reads one range and checks after each piece that the file is still
// the same.
type reader struct {
	*io.SectionReader
	file *os.File
	id   source.Identity
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.SectionReader.Read(p)
	id, idErr := identity(r.file)
	switch {
	case idErr != nil:
		return 0, idErr
	case id != r.id:
		return 0, fmt.Errorf("read %s: %w", r.file.Name(), source.ErrChanged)
	}
	return n, err
}

func (r *reader) Close() error { return r.file.Close() }

// open opens a regular file. O_NONBLOCK keeps the open of a FIFO from waiting
// for a writer; it means nothing to a regular file.
func open(path string) (*os.File, source.Identity, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, source.Identity{}, fmt.Errorf("%w: %w", source.ErrNotFound, cause(err))
	case errors.Is(err, os.ErrPermission):
		return nil, source.Identity{}, fmt.Errorf("%w: %w", source.ErrDenied, cause(err))
	case err != nil:
		return nil, source.Identity{}, cause(err)
	}
	id, err := identity(f)
	if err != nil {
		return nil, id, errors.Join(err, f.Close())
	}
	return f, id, nil
}

func identity(f *os.File) (source.Identity, error) {
	info, err := f.Stat()
	if err != nil {
		return source.Identity{}, cause(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return source.Identity{}, errors.New("not a regular file")
	}
	validator := fmt.Sprintf("mtime %d ctime %d device %d inode %d",
		stat.Mtim.Nano(), stat.Ctim.Nano(), stat.Dev, stat.Ino)
	return source.Identity{Size: info.Size(), Validator: validator}, nil
}

// cause leaves out the path, which the caller's text already has.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
