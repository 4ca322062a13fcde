package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// restore goes on with what the worker before has served, or, where nobody held
// the group meanwhile (fresh), takes down what a dead instance has left.
func (i *Instance) restore(fresh bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	list, err := i.records.list()
	if err != nil {
		i.note(err.Error())
		i.log.Error("reading records", "err", err)
	}
	if err := i.dropSteps(); err != nil {
		return err
	}
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	var alone *control.Unguarded
	if fresh {
		alone = &control.Unguarded{From: i.root.LastBeat(), To: time.Now()}
	}
	for _, rec := range list {
		if err := i.restoreOne(rec, mounts, alone); err != nil {
			// One that cannot be served must not keep the others from it.
			i.breakLocked(rec, fresh, err)
		}
	}
	if fresh {
		if err := i.unmountStrays(alone); err != nil {
			return err
		}
	}
	if alone != nil && len(alone.Files) > 0 {
		if i.showsLocked() {
			if err := dropPageCache(); err != nil {
				i.report("forgetting what was read while nobody served: readers may go on seeing zeros", err)
			}
		}
		i.unguarded = append(i.unguarded, *alone)
		i.log.Error("files stood unguarded: readers may have seen zeros in place of missing data, and what is mapped may have them still",
			"from", alone.From, "to", alone.To, "files", alone.Files, "in_use_by", alone.Users)
	}
	return nil
}

// showsLocked tells whether a filesystem of what is recorded lives: zeros that were
// read of it while nobody served stay in its page cache, and are no event's business
// any more.
func (i *Instance) showsLocked() bool {
	for _, f := range i.files {
		if f.record.Kind != kindBind {
			return true
		}
	}
	return len(i.mounts) > 0
}

// restoreOne goes on with one record. alone, where it is not nil, notes what
// nobody guarded.
func (i *Instance) restoreOne(rec record, mounts []mount.Mount, alone *control.Unguarded) error {
	if rec.Kind == kindBind {
		if alone == nil {
			return i.rebindLocked(rec)
		}
		alone.Files = append(alone.Files, rec.Path)
		return i.records.remove(rec.Path)
	}
	if rec.Kind == kindMount {
		return i.restoreMount(rec, mounts, alone)
	}
	mounted, guarded := rec.standing(mounts), alone == nil
	alive, err := rec.alive()
	if err != nil {
		return err
	}
	if alone != nil && (mounted || alive) {
		if guarded = whole(i.root.Dir(), rec); !guarded {
			alone.Files = append(alone.Files, rec.Path)
		}
		if mounted, alive, err = tryTakeDown(rec, mounted); err != nil {
			return err
		}
	}
	if !mounted && !alive {
		// Nobody used it, or the machine was restarted, or who served it died
		// between the record and the mount.
		return i.dropLocked(rec)
	}
	if err := i.reattachLocked(rec, !mounted); err != nil || guarded {
		return err
	}
	// In use: from now on it is guarded again.
	alone.Users = append(alone.Users, rec.users(i.client.KeeperPID()))
	return nil
}

// dropLocked undoes the record of an attach that is not mounted.
func (i *Instance) dropLocked(rec record) error {
	err := errors.Join(dropPlaceholder(rec), i.records.remove(rec.Path))
	id := ondemand.ObjectID(rec.Object)
	if rec.Forget && i.objects[id] == nil {
		if e := i.removeObject(id); !errors.Is(e, cache.ErrNoObject) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// dataSuffix is how the path of an object's data ends.
func dataSuffix(object string) string {
	return filepath.Join("/objects", object[:min(2, len(object))], object, "data")
}

// reattachLocked serves an attached file whose mount stands, or leaving, whose
// filesystem lives without it, and does not ask the source.
func (i *Instance) reattachLocked(rec record, leaving bool) error {
	id := ondemand.ObjectID(rec.Object)
	o := i.objects[id]
	if o != nil {
		o.files++
	} else {
		cached, err := i.standing(cache.Meta{ID: id, Size: rec.Size})
		if err != nil {
			return err
		}
		var where origin
		if err := json.Unmarshal(cached.Meta().Source, &where); err != nil {
			return errors.Join(fmt.Errorf("read the source of %s: %w", id.Short(), err), cached.Close())
		}
		blob, err := i.sources.reopen(where)
		if err != nil {
			return errors.Join(err, cached.Close())
		}
		if o, err = i.serveLocked(cached, where, blob); err != nil {
			return err
		}
	}
	i.files[rec.Path] = &attachedFile{record: rec, object: o, leaving: leaving}
	return nil
}

// unmountStrays takes down mounts of this root's filesystem images that no record
// explains.
func (i *Instance) unmountStrays(alone *control.Unguarded) error {
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if i.files[m.Point] != nil || i.mounts[m.Point] != nil || !isOwnMount(m, i.root.Dir()) {
			continue
		}
		if err := mount.Unmount(m.Point, false); err != nil {
			i.note(fmt.Sprintf("a dead instance left %s: %v", m.Point, err))
			i.log.Error("unmounting what a dead instance left", "file", m.Point, "err", err)
		}
		alone.Files = append(alone.Files, m.Point)
	}
	return nil
}
