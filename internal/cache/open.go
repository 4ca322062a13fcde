package cache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Create opens the object that meta describes, and makes it first where it
// does not exist: nothing present. ErrMismatch where the object exists as
// another one (see Meta), *VersionError where a later version wrote it.
func (r *Root) Create(meta Meta) (*Object, error) {
	meta.Version, meta.Verified = metaVersion, false
	if err := meta.check(); err != nil {
		return nil, fmt.Errorf("create object %s: %w", meta.ID.Short(), err)
	}
	if r.readOnly {
		return nil, fmt.Errorf("create object %s: %w", meta.ID.Short(), ErrReadOnly)
	}
	o, made, err := r.openOrMake(meta)
	if err != nil {
		return nil, fmt.Errorf("create object %s: %w", meta.ID.Short(), err)
	}
	if made {
		return o, nil
	}
	if err := o.updateMeta(meta); err != nil {
		return nil, fmt.Errorf("open object %s: %w", meta.ID.Short(), err)
	}
	return o, nil
}

func (r *Root) openOrMake(meta Meta) (o *Object, made bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, err = r.handOutLocked(meta.ID)
	if errors.Is(err, ErrCorrupt) {
		// Without its description nothing of it can be trusted.
		if err = r.removeLocked(meta.ID); err == nil {
			err = ErrNoObject
		}
	}
	if !errors.Is(err, ErrNoObject) {
		return o, false, err
	}
	if err := r.makeLocked(meta); err != nil {
		return nil, false, err
	}
	o, err = r.handOutLocked(meta.ID)
	return o, true, err
}

// Object opens an object that exists; ErrNoObject where it does not,
// ErrCorrupt where its description is damaged.
func (r *Root) Object(id ondemand.ObjectID) (*Object, error) {
	if _, err := parseKey(id); err != nil {
		return nil, fmt.Errorf("open object %s: %w: %w", id.Short(), ErrNoObject, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o, err := r.handOutLocked(id)
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", id.Short(), err)
	}
	return o, nil
}

// drop takes a closed object off the list of open ones.
func (r *Root) drop(o *Object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[o.id] == o {
		delete(r.open, o.id)
	}
}

// makeLocked makes the files of a new object under a name in partial/, and gives
// them their name. Of the files only the description is made durable: the
// others, should a crash cost them, are found not to fit and nothing is present.
func (r *Root) makeLocked(meta Meta) error {
	partial := r.partialName(meta.ID)
	if err := r.fillDir(partial, meta); err != nil {
		return errors.Join(err, r.disk.Remove(partial))
	}
	if err := r.giveName(partial, meta.ID); err != nil {
		return errors.Join(err, r.disk.Remove(partial))
	}
	return nil
}

// fillDir makes a directory with the three files of a new object.
func (r *Root) fillDir(dir string, meta Meta) error {
	if _, err := r.disk.Mkdir(dir); err != nil {
		return err
	}
	data, err := r.makeData(dir, meta.Size)
	if err != nil {
		return err
	}
	st, err := data.Stat()
	if err = errors.Join(err, data.Close()); err != nil {
		return err
	}
	return r.describe(dir, meta, st)
}

// makeData makes a data file of the right size, all hole. Anybody may read it who
// is handed a mount of it; the root's permissions keep others from its path.
func (r *Root) makeData(dir string, size int64) (file, error) {
	f, err := r.disk.Create(path.Join(dir, dataName), 0o644)
	if err != nil {
		return nil, err
	}
	if err := resize(f, size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// DataSize is the length of the data file of an object of that size: whole
// blocks, because the kernel reads an EROFS device in whole blocks, and a short
// read is an error (fs/erofs/fileio.c). The bytes behind the object are zeros.
func DataSize(size int64) int64 {
	return (size + ondemand.BlockSize - 1) &^ (ondemand.BlockSize - 1)
}

// resize makes f as long as the data of an object of that size is.
func resize(f file, size int64) error {
	l, ok := f.(layout)
	if !ok {
		return errors.New("resize data: the file has no layout")
	}
	if err := l.Truncate(DataSize(size)); err != nil {
		return fmt.Errorf("resize data to %d: %w", DataSize(size), err)
	}
	return nil
}

// headerFor is the presence header that an object calls for, in a new epoch.
func headerFor(meta Meta, data fileStat) (header, error) {
	k, err := parseKey(meta.ID)
	return header{key: k, epoch: rand.Uint64(), size: meta.Size, inode: data.inode, birth: data.birth}, err
}

// handOutLocked is openLocked for who closes the object.
func (r *Root) handOutLocked(id ondemand.ObjectID) (*Object, error) {
	o, err := r.openLocked(id)
	if err == nil {
		o.handedOut = true
	}
	return o, err
}

// openLocked opens an object, or finds it open.
func (r *Root) openLocked(id ondemand.ObjectID) (*Object, error) {
	if r.closed {
		return nil, ErrClosed
	}
	if o := r.open[id]; o != nil && !o.isClosed() {
		return o, nil
	}
	dir := objectDir(id)
	meta, err := readMeta(r.disk, dir, id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, r.whyNoMeta(dir)
	}
	if err != nil {
		return nil, err
	}
	o := &Object{root: r, dir: dir, id: id, size: meta.Size, meta: meta}
	if err := o.load(); err != nil {
		return nil, errors.Join(err, o.closeAfter())
	}
	r.open[id] = o
	return o, nil
}

// whyNoMeta tells an object that does not exist from one whose description is gone.
func (r *Root) whyNoMeta(dir string) error {
	names, err := r.disk.Names(path.Dir(dir))
	if err != nil {
		return err
	}
	if slices.Contains(names, path.Base(dir)) {
		return fmt.Errorf("%s has no %s: %w", dir, metaName, ErrCorrupt)
	}
	return ErrNoObject
}

// closeAfter closes what load had opened before it failed.
func (o *Object) closeAfter() error {
	var errs []error
	if o.data != nil {
		errs = append(errs, o.data.Close())
	}
	if o.saved != nil && o.saved.file != nil {
		errs = append(errs, o.saved.file.Close())
	}
	return errors.Join(errs...)
}

// load opens the object's files and makes its presence what can be believed.
// Where that is less than disk claims, disk is told before it returns.
func (o *Object) load() error {
	st, err := o.openData()
	if err != nil {
		return err
	}
	want, err := headerFor(o.meta, st)
	if err != nil {
		return err
	}
	if err := o.openPresence(want); err != nil {
		return err
	}
	if st.size != DataSize(o.size) && o.found.Reset == "" {
		o.found.Reset = fmt.Sprintf("the data file has %d bytes, not %d", st.size, DataSize(o.size))
	}
	if o.found.Reset != "" {
		if err := o.reset(want); err != nil {
			return err
		}
	} else if err := o.distrust(); err != nil {
		return err
	}
	if st.size != DataSize(o.size) && !o.root.readOnly {
		if err := errors.Join(resize(o.data, o.size), o.data.Datasync()); err != nil {
			return err
		}
	}
	o.presence = ondemand.NewPresence(o.size)
	for _, r := range o.saved.durable.Present(ondemand.Range{Len: o.size}) {
		o.presence.Set(r)
	}
	o.complete.Store(o.saved.durable.Complete())
	o.unverify()
	if o.root.readOnly {
		return nil
	}
	return o.saveMeta()
}

// openData opens the data file; where it is gone, a new one takes its place.
func (o *Object) openData() (fileStat, error) {
	d := o.root.disk
	f, err := d.Open(path.Join(o.dir, dataName))
	if errors.Is(err, os.ErrNotExist) {
		if o.root.readOnly {
			return fileStat{}, fmt.Errorf("the data file is gone: %w", ErrCorrupt)
		}
		o.found.Reset = "the data file was gone"
		if f, err = o.root.makeData(o.dir, o.size); err == nil {
			o.data = f
			err = d.SyncDir(o.dir)
		}
	}
	if err != nil {
		return fileStat{}, fmt.Errorf("open data: %w", err)
	}
	o.data = f
	st, err := f.Stat()
	if err != nil {
		return fileStat{}, fmt.Errorf("stat data: %w", err)
	}
	return st, nil
}

// openPresence reads the presence file; where it is of no use, found says why.
func (o *Object) openPresence(want header) error {
	name := path.Join(o.dir, presenceName)
	f, err := o.root.disk.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		o.found.Reset = "the presence file was gone"
		return nil
	}
	if err != nil {
		return fmt.Errorf("open presence: %w", err)
	}
	if l, ok := f.(layout); ok && !o.root.readOnly {
		// An instance before may have died after a sync that failed: what it
		// wrote then would be taken for durable.
		if err := l.Settle(); err != nil {
			return errors.Join(fmt.Errorf("open presence: %w", err), f.Close())
		}
	}
	s, err := loadSaved(f, want)
	var other errOther
	var newer *VersionError
	switch {
	case errors.As(err, &other):
		if o.found.Reset == "" {
			o.found.Reset = other.reason
		}
		return f.Close()
	case errors.As(err, &newer):
		newer.Path = name
		return errors.Join(newer, f.Close())
	case err != nil:
		return errors.Join(err, f.Close())
	}
	o.saved, o.found.BadSlots = s, s.torn
	return nil
}

// reset makes a presence file that claims nothing take the old one's place.
func (o *Object) reset(h header) error {
	if o.saved != nil && o.saved.file != nil {
		if err := o.saved.file.Close(); err != nil {
			return err
		}
	}
	o.saved = emptySaved(nil, h)
	if o.root.readOnly {
		return nil
	}
	d, name := o.root.disk, path.Join(o.dir, presenceName)
	if err := writeFile(d, name+newSuffix, h.encode(), true); err != nil {
		return fmt.Errorf("reset presence: %w", err)
	}
	if err := d.Rename(name+newSuffix, name); err != nil {
		return fmt.Errorf("reset presence: %w", err)
	}
	if err := d.SyncDir(o.dir); err != nil {
		return fmt.Errorf("reset presence: %w", err)
	}
	f, err := d.Open(name)
	if err != nil {
		return fmt.Errorf("reset presence: %w", err)
	}
	o.saved.file = f
	return nil
}

// distrust makes missing what presence claims and the data file does not have,
// and writes pages again of which a slot was bad: what could not be read now
// must not come back later.
func (o *Object) distrust() error {
	holes, err := findHoles(o.data, o.saved.durable.Present(ondemand.Range{Len: o.size}), o.size)
	if err != nil {
		return err
	}
	o.found.Holes = holes
	for _, r := range holes {
		o.saved.forget(r)
	}
	for _, bad := range o.saved.torn {
		o.saved.dirty[bad.Page] = true
	}
	if o.root.readOnly {
		return nil
	}
	if err := o.saved.save(); err != nil {
		return fmt.Errorf("repair presence: %w", err)
	}
	return nil
}

// updateMeta takes over what asked adds to the object's description. Bytes of
// another source that no digest has proved are forgotten first, durably: one
// object is never made of two sources unseen.
func (o *Object) updateMeta(asked Meta) error {
	o.saving.Lock()
	defer o.saving.Unlock()
	old := o.Meta()
	m, err := old.update(asked)
	if err != nil || (m.SHA256 == old.SHA256 && sameJSON(m.Source, old.Source)) {
		return err
	}
	if m.SHA256 != old.SHA256 {
		m.Verified = false
	}
	if !old.Verified && !sameJSON(m.Source, old.Source) {
		if err := o.invalidate([]ondemand.Range{{Len: o.size}}); err != nil {
			return fmt.Errorf("forget what another source gave: %w", err)
		}
	}
	return o.setMeta(m)
}
