package cache

import (
	"errors"
	"io"
	"path"
	"slices"
)

// simFile is an open file of a simDisk.
type simFile struct {
	d    *simDisk
	n    *simNode
	name string
	life int
}

func (f *simFile) step(op string) error {
	if f.life != f.d.life {
		return errDead
	}
	return f.d.step(op, f.name)
}

func (f *simFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.step("read"); err != nil {
		return 0, err
	}
	total := 0
	for total < len(p) && off < f.n.size[seen] {
		c := min(int64(len(p)-total), block-off%block, f.n.size[seen]-off)
		part := p[total : total+int(c)]
		if b := f.n.blocks[seen][off/block]; b != nil {
			copy(part, b[off%block:])
		} else {
			clear(part)
		}
		total, off = total+int(c), off+c
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}

// WriteAt that fails may have written a part.
func (f *simFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.step("write")
	if errors.Is(err, errDead) {
		return 0, err
	}
	if err != nil {
		p = p[:f.d.rng.IntN(len(p)+1)]
	}
	w := simWrite{off: off, p: slices.Clone(p)}
	f.n.apply(seen, w)
	f.n.unsynced = append(f.n.unsynced, w)
	if errors.Is(err, errShort) {
		err = nil
	}
	return len(p), err
}

// errShort makes a write short without an error.
var errShort = errors.New("short")

// Datasync that fails leaves a part on disk, and drops some of the rest from
// memory too, as the page cache may.
func (f *simFile) Datasync() error {
	if f.d.ignoreSync == path.Base(f.name) {
		return nil
	}
	err := f.step("sync")
	if errors.Is(err, errDead) {
		return err
	}
	writes := slices.Clone(f.n.unsynced)
	if err == nil {
		for _, w := range writes {
			f.n.apply(onDisk, w)
		}
		f.n.unsynced = nil
		return nil
	}
	f.n.flush(f.d.rng)
	for _, w := range writes {
		if w.truncate { // a size is the journal's, which does not forget
			f.n.unsynced = append(f.n.unsynced, w)
		}
		for b := w.off / block; !w.truncate && b*block < w.off+int64(len(w.p)); b++ {
			if f.d.rng.IntN(2) == 0 {
				if old := f.n.blocks[onDisk][b]; old != nil {
					f.n.blocks[seen][b] = slices.Clone(old)
				} else {
					delete(f.n.blocks[seen], b)
				}
			}
		}
	}
	return err
}

func (f *simFile) Stat() (fileStat, error) {
	if err := f.step("stat"); err != nil {
		return fileStat{}, err
	}
	return fileStat{size: f.n.size[seen], inode: f.n.inode, birth: int64(f.n.inode), disk: int64(len(f.n.blocks[seen])) * block}, nil
}

func (f *simFile) Close() error { return f.step("close") }

func (f *simFile) Truncate(size int64) error {
	if err := f.step("truncate"); err != nil {
		return err
	}
	w := simWrite{truncate: true, off: size}
	f.n.apply(seen, w)
	f.n.unsynced = append(f.n.unsynced, w)
	return nil
}

func (f *simFile) NextData(off int64) (int64, error) { return f.next(off, true) }
func (f *simFile) NextHole(off int64) (int64, error) { return f.next(off, false) }

func (f *simFile) Settle() error {
	if err := f.Datasync(); err != nil {
		return err
	}
	f.n.size[seen], f.n.blocks[seen] = f.n.size[onDisk], cloneBlocks(f.n.blocks[onDisk])
	return nil
}

func (f *simFile) next(off int64, data bool) (int64, error) {
	if err := f.step("seek"); err != nil {
		return 0, err
	}
	size := f.n.size[seen]
	if off >= size {
		return 0, io.EOF
	}
	if f.n.blocks[seen][off/block] != nil == data {
		return off, nil
	}
	best := size
	if data {
		for b := range f.n.blocks[seen] {
			if b*block >= off {
				best = min(best, b*block)
			}
		}
		if best == size {
			return 0, io.EOF
		}
		return best, nil
	}
	b := off / block
	for b*block < size && f.n.blocks[seen][b] != nil {
		b++
	}
	return min(b*block, size), nil
}
