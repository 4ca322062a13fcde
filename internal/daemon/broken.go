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
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// What was served and cannot be gone on with, such as a file whose object is
// damaged, stands and is denied: its events find no object. It is kept among the
// instance's files so that status tells of it and detach takes it down.

// breakLocked keeps rec as one that cannot be served because of why. fresh: nobody
// has marked it for this group.
func (i *Instance) breakLocked(rec record, mounts []mount.Mount, fresh bool, why error) {
	i.note(fmt.Sprintf("going on with %s: %v", rec.Path, why))
	i.log.Error("going on with what was served", "path", rec.Path, "err", why)
	i.files[rec.Path] = &attachedFile{record: rec, broken: why}
	if !fresh || rec.Kind != kindAttach || !rec.standing(mounts) {
		return
	}
	if err := i.changeMark(i.root.Dir()+dataSuffix(rec.Object), sys.FanotifyMark); err != nil {
		i.report("denying reads of "+rec.Path, err)
	}
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

// detachBroken takes down what cannot be served, unless somebody uses it.
func (i *Instance) detachBroken(f *attachedFile) error {
	path := f.record.Path
	var err error
	if f.record.Kind == kindBind {
		err = i.dropBrokenBind(f.record)
	} else {
		err = i.dropBrokenAttach(f.record)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	delete(i.files, path)
	i.log.Info("detached", "file", path)
	return nil
}

// dropBrokenAttach undoes an attach, or a mount, of which only the record is known.
func (i *Instance) dropBrokenAttach(rec record) error {
	err := rec.takeOff(true, false)
	alive, e := rec.alive()
	if errors.Is(err, syscall.EBUSY) || err == nil && alive {
		return refuse(control.ExitInUse, "let them close it, then detach again", "detach %s: in use by %s", rec.Path, rec.users(i.client.KeeperPID()))
	}
	if err := errors.Join(err, e); err != nil {
		return err
	}
	if rec.Kind == kindMount {
		return i.dropMount(rec)
	}
	if !i.otherShows(rec) {
		err := i.changeMark(i.root.Dir()+dataSuffix(rec.Object), sys.FanotifyUnmark)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return i.dropLocked(rec)
}

// otherShows tells whether another file here is of the record's object.
func (i *Instance) otherShows(rec record) bool {
	for path, f := range i.files {
		if path != rec.Path && f.record.Object == rec.Object {
			return true
		}
	}
	return i.objects[ondemand.ObjectID(rec.Object)] != nil
}

// dropBrokenBind undoes a bind of which only the record is known.
func (i *Instance) dropBrokenBind(rec record) error {
	users, err := boundLeft([]record{rec}, i.held, i.client.KeeperPID())
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return refuse(control.ExitInUse, "let them close it, then detach again", "detach %s", some(users))
	}
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
	err = errors.Join(i.unholdBind(rec.Path), i.records.remove(rec.Path))
	// The devnode listens until the keeper has closed it, too.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := i.client.Barrier(ctx); err != nil {
		i.report("letting go of the devnode "+rec.Devnode, err)
	}
	return err
}
