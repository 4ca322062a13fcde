package cache

import (
	"errors"
	"fmt"
	"io"
	"path"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Draft is the data of an object that has no name yet: its size and what it is
// are known only when all of it has been written, as with a layer that is
// streamed. It lies in partial/, and a crash leaves nothing of it.
type Draft struct {
	root *Root
	dir  string
	data file
	done atomic.Bool
}

// draftName is what a draft's directory begins with; no object is called so.
const draftName = "draft"

// NewDraft makes an empty one. The caller ends it with Commit or Discard.
func (r *Root) NewDraft() (*Draft, error) {
	if r.readOnly {
		return nil, ErrReadOnly
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	d := &Draft{root: r, dir: r.partialName(draftName)}
	if _, err := r.disk.Mkdir(d.dir); err != nil {
		return nil, fmt.Errorf("begin an object: %w", err)
	}
	f, err := r.makeData(d.dir, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin an object: %w", err), r.disk.Remove(d.dir))
	}
	d.data = f
	return d, nil
}

// WriteAt implements io.WriterAt. What is never written is zeros.
func (d *Draft) WriteAt(p []byte, off int64) (int, error) { return d.data.WriteAt(p, off) }

// Discard removes the draft, unless it was committed.
func (d *Draft) Discard() error {
	if d.done.Swap(true) {
		return nil
	}
	return errors.Join(d.data.Close(), d.root.disk.Remove(d.dir))
}

// Commit makes the draft the object that meta describes; what was written is present
// and durable then. Blocks in which nothing was written are missing: what reads as
// zeros may be far more than what was written, and whoever fills the object knows
// that it is zeros. Where the object exists already, that one gets what it lacks and
// the draft is removed. A draft that could not be committed is gone. It hands out no
// object: one that somebody has open stays open, and one that nobody has is closed.
func (d *Draft) Commit(meta Meta) (err error) {
	meta.Version, meta.Verified = metaVersion, false
	defer func() {
		if err = errors.Join(err, d.Discard()); err != nil {
			err = fmt.Errorf("commit object %s: %w", meta.ID.Short(), err)
		}
	}()
	if err := meta.check(); err != nil {
		return err
	}
	if err := resize(d.data, meta.Size); err != nil {
		return err
	}
	written, err := findData(d.data, meta.Size)
	if err != nil {
		return err
	}
	if err := d.solid(written, meta.Size); err != nil {
		return err
	}
	o, made, err := d.root.adopt(d, meta)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.root.leave(o)) }()
	switch {
	case made:
		for _, r := range written {
			o.noteFresh(r)
			o.presence.Set(r)
		}
		return o.finish(written...)
	case !o.Complete():
		return d.copyTo(o, written)
	}
	return nil
}

// solid writes the rest of blocks that are a hole in part, as file systems with
// smaller blocks have them: a hole would be taken for lost data.
func (d *Draft) solid(written []ondemand.Range, size int64) error {
	holes, err := findHoles(d.data, written, size)
	if err != nil {
		return err
	}
	for _, h := range holes {
		err := d.pieces(h, func(p []byte, off int64) error { return writeAll(d.data, p, off) })
		if err != nil {
			return err
		}
	}
	return nil
}

// copyTo fills what o lacks of what was written.
func (d *Draft) copyTo(o *Object, written []ondemand.Range) error {
	for _, r := range written {
		if err := d.pieces(r, o.Fill); err != nil {
			return err
		}
	}
	return nil
}

// pieces calls do with what r holds, piece by piece.
func (d *Draft) pieces(r ondemand.Range, do func(p []byte, off int64) error) error {
	buf := make([]byte, min(1<<20, r.Len))
	for off := r.Off; off < r.End(); off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), r.End()-off)]
		if n, err := d.data.ReadAt(p, off); n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read the draft at %d: %w", off, err)
		}
		if err := do(p, off); err != nil {
			return err
		}
	}
	return nil
}

// adopt gives the draft's data to a new object; made is false where there is one.
// The caller leaves it.
func (r *Root) adopt(d *Draft, meta Meta) (o *Object, made bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if o != nil {
			o.guests++
		}
	}()
	o, err = r.openLocked(meta.ID)
	if errors.Is(err, ErrCorrupt) {
		if err = r.removeLocked(meta.ID); err == nil {
			err = ErrNoObject
		}
	}
	if !errors.Is(err, ErrNoObject) {
		return o, false, err
	}
	st, err := d.data.Stat()
	if err == nil {
		err = r.describe(d.dir, meta, st)
	}
	if err == nil {
		err = r.giveName(d.dir, meta.ID)
	}
	if err != nil {
		return nil, false, err
	}
	d.done.Store(true)
	if err := d.data.Close(); err != nil {
		return nil, false, err
	}
	o, err = r.openLocked(meta.ID)
	return o, true, err
}

// leave ends what adopt began: the last to leave closes the object, unless it was
// handed out before or since.
func (r *Root) leave(o *Object) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.guests--; o.guests > 0 || o.handedOut {
		return nil
	}
	if r.open[o.id] == o {
		delete(r.open, o.id)
	}
	return o.shut(o.checkpoint)
}

// describe makes the files beside the data of a new object, and makes their
// names durable.
func (r *Root) describe(dir string, meta Meta, data fileStat) error {
	h, err := headerFor(meta, data)
	if err != nil {
		return err
	}
	if err := writeFile(r.disk, path.Join(dir, presenceName), h.encode(), false); err != nil {
		return err
	}
	b, err := meta.encode()
	if err != nil {
		return err
	}
	if err := writeFile(r.disk, path.Join(dir, metaName), b, true); err != nil {
		return err
	}
	return r.disk.SyncDir(dir)
}

// giveName moves the directory of a new object to where objects are looked for.
func (r *Root) giveName(partial string, id ondemand.ObjectID) error {
	dir := objectDir(id)
	made, err := r.disk.Mkdir(path.Dir(dir))
	if err == nil && made {
		err = r.disk.SyncDir(objectsDir)
	}
	if err == nil {
		err = r.disk.Rename(partial, dir)
	}
	if err != nil {
		return err
	}
	return r.disk.SyncDir(path.Dir(dir))
}
