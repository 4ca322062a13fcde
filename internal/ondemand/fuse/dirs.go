package fuse

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lacunafs/lacuna/internal/erofs"
)

// openDir is an open directory: its names, read when they are first asked for.
type openDir struct {
	once    sync.Once
	entries []erofs.Entry
	err     error
}

// OpenDir implements fuse.RawFileSystem. The kernel may keep what it lists.
func (a *answers) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	a.dirs[a.next] = &openDir{}
	out.Fh, out.OpenFlags = a.next, fuse.FOPEN_KEEP_CACHE|fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (a *answers) ReleaseDir(in *fuse.ReleaseIn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.dirs, in.Fh)
}

// list is what an open directory lists. One that another process has opened, before it
// died, is read anew: the order is the image's.
func (a *answers) list(in *fuse.ReadIn) ([]erofs.Entry, error) {
	a.mu.Lock()
	d := a.dirs[in.Fh]
	if d == nil {
		d = &openDir{}
		a.next = max(a.next, in.Fh)
		a.dirs[in.Fh] = d
	}
	a.mu.Unlock()
	d.once.Do(func() {
		node, err := a.t.node(in.NodeId)
		if err == nil {
			d.entries, err = a.t.image.List(node)
		}
		d.err = err
	})
	return d.entries, d.err
}

// ReadDir implements fuse.RawFileSystem. An offset is the number of entries before it.
func (a *answers) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return a.each(in, func(e fuse.DirEntry, _ bool) (bool, error) { return out.AddDirEntry(e), nil })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (a *answers) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return a.each(in, func(e fuse.DirEntry, dots bool) (bool, error) {
		more := out.AddDirLookupEntry(e)
		if more == nil || dots {
			return more != nil, nil // the kernel looks these up by itself
		}
		return true, a.entry(e.Ino, more)
	})
}

func (a *answers) each(in *fuse.ReadIn, add func(e fuse.DirEntry, dots bool) (bool, error)) fuse.Status {
	entries, err := a.list(in)
	if err != nil {
		return status(err)
	}
	for i := in.Offset; i < uint64(len(entries)); i++ {
		e := &entries[i]
		dots := e.Name == "." || e.Name == ".."
		more, err := add(fuse.DirEntry{Name: e.Name, Ino: e.NID, Mode: e.Type, Off: i + 1}, dots)
		if err != nil {
			return status(err)
		}
		if !more {
			break
		}
	}
	return fuse.OK
}
