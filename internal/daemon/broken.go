package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// What was served and cannot be gone on with, such as a file whose object is
// damaged, stands and is denied: its events find no object. It is kept among the
// instance's files so that status tells of it and detach takes it down.

// breakLocked keeps rec as one that cannot be served because of why. fresh: nobody
// has marked it for this group.
func (i *Instance) breakLocked(rec record, fresh bool, why error) {
	i.note(fmt.Sprintf("going on with %s: %v", rec.Path, why))
	i.log.Error("going on with what was served", "path", rec.Path, "err", why)
	if i.files[rec.key()] == nil {
		i.files[rec.key()] = &attachedFile{record: rec, broken: why}
	}
	if alive, err := rec.alive(); !fresh || rec.Kind == kindBind || err == nil && !alive {
		return
	}
	for _, id := range i.shownBy(rec) {
		if i.objects[id] != nil {
			continue // another file shows it, and it is served
		}
		if err := i.changeMark(i.root.Dir()+dataSuffix(string(id)), sys.FanotifyMark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			i.report("denying reads of "+rec.Path, err)
		}
	}
}

// shownBy is the objects whose data the record's filesystem reads: of a mount whose
// plan is lost it may be all.
func (i *Instance) shownBy(rec record) []ondemand.ObjectID {
	switch rec.Kind {
	case kindAttach:
		return []ondemand.ObjectID{ondemand.ObjectID(rec.Object)}
	case kindBind:
		return nil
	}
	if rec.fromManifest() {
		if plan, err := i.manifests.Load(rec.Plan); err == nil {
			return plan.Objects()
		}
	}
	plan, err := i.library.Load(rec.Plan)
	if err != nil {
		all, err := i.root.List()
		if err != nil {
			i.report("looking for the devices of "+rec.Path, err)
		}
		return all
	}
	var ids []ondemand.ObjectID
	for _, n := range plan.Devices {
		ids = append(ids, plan.Layers[n].Device)
	}
	return ids
}

// changeMark marks or unmarks the file at path; no mark is no error.
func (i *Instance) changeMark(path string, change func(group, file *sys.FD) error) error {
	file, err := sys.OpenPath(path)
	if err != nil {
		return err
	}
	err = change(i.group, file)
	if errors.Is(err, syscall.ENOENT) {
		err = nil
	}
	return errors.Join(err, file.Close())
}

// detachBroken takes down what cannot be served, unless somebody uses it, or lazily,
// when nobody does any more. verb is for messages.
func (i *Instance) detachBroken(verb string, f *attachedFile, lazy bool) (err error) {
	rec := f.record
	drop := func(f *attachedFile) error { return i.dropBrokenShownLocked(f, lazy) }
	if rec.Kind == kindBind {
		var left []standing
		if left, err = boundLeft([]record{rec}, i.heldNow(), i.client.KeeperPID()); len(left) > 0 {
			return refuse(control.ExitInUse, "let them close it, then detach again", "detach %s: in use: %s", rec.Path, left[0].users())
		}
		drop = i.dropBrokenBindLocked
	} else if !lazy {
		err = rec.alone()
	}
	if err == nil {
		i.mu.Lock()
		if i.files[rec.key()] != f {
			err = errors.New("another command has taken it down meanwhile")
		} else {
			err = drop(f)
		}
		i.mu.Unlock()
	}
	if errors.Is(err, syscall.EBUSY) {
		return &inUseError{record: rec, hint: "let them close it, then " + verb + " again", text: verb + " " + rec.Path + ": in use"}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, rec.Path, err)
	}
	if rec.Kind == kindBind {
		// The devnode listens until the keeper has closed it, too.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := i.client.Barrier(ctx); err != nil {
			i.report("letting go of the devnode "+rec.Devnode, err)
		}
	}
	i.log.Info("detached", "file", rec.Path)
	return nil
}

// brokenLocked is a mount of path that cannot be served; nil: there is none.
func (i *Instance) brokenLocked(path string) *attachedFile {
	for _, f := range i.files {
		if f.broken != nil && f.record.Kind == kindMount && f.record.Path == path {
			return f
		}
	}
	return nil
}

// dropBrokenShownLocked undoes an attach, or a mount, of which little is known but the
// record; EBUSY, wrapped, where it is in use. A lazy one leaves it to those who use it,
// denied, until forgetBrokenLocked.
func (i *Instance) dropBrokenShownLocked(f *attachedFile, lazy bool) error {
	rec := f.record
	if err := rec.takeOff(lazy); err != nil {
		return err
	}
	if alive, err := rec.alive(); err != nil {
		return err
	} else if alive {
		f.leaving = true
		if lazy {
			return nil
		}
		return fmt.Errorf("%s is unmounted and still in use: %w", rec.Path, syscall.EBUSY)
	}
	return i.forgetBrokenLocked(f)
}

// forgetBrokenLocked undoes the rest of what cannot be served, and cannot be read any more.
func (i *Instance) forgetBrokenLocked(f *attachedFile) error {
	rec := f.record
	if f.half != nil {
		if err := i.releaseDevicesLocked(f.half); err != nil {
			return err
		}
	}
	others := i.shownByOthers(rec.key())
	for _, id := range i.shownBy(rec) {
		if others[id] {
			continue
		}
		err := i.changeMark(i.root.Dir()+dataSuffix(string(id)), sys.FanotifyUnmark)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := i.dropLocked(rec); err != nil {
		return err
	}
	delete(i.files, rec.key())
	return nil
}

// shownByOthers is the objects that must stay marked without the record with that key.
func (i *Instance) shownByOthers(key string) map[ondemand.ObjectID]bool {
	shown := make(map[ondemand.ObjectID]bool)
	for id := range i.objects {
		shown[id] = true
	}
	for other, f := range i.files {
		if other == key || f.broken == nil {
			continue
		}
		for _, id := range i.shownBy(f.record) {
			shown[id] = true
		}
	}
	return shown
}

// dropBrokenBindLocked undoes a bind of which only the record is known.
func (i *Instance) dropBrokenBindLocked(f *attachedFile) error {
	rec := f.record
	entries, err := os.ReadDir(rec.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := i.changeMark(filepath.Join(rec.Path, e.Name()), sys.FanotifyUnmark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(i.unholdBind(rec.Path), i.records.remove(rec.Path)); err != nil {
		return err
	}
	delete(i.files, rec.key())
	return nil
}
