package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	// What was left last of all: what is at its path then is known.
	slices.SortStableFunc(list, func(a, b record) int { return strings.Compare(a.Left, b.Left) })
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	var alone *unguarded
	if fresh {
		alone = &unguarded{Unguarded: control.Unguarded{From: i.root.LastBeat(), To: time.Now()}}
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
		for _, rec := range alone.used { // not before all is guarded: it takes a while
			alone.Users = append(alone.Users, rec.users(i.client.KeeperPID()))
		}
		i.unguarded = append(i.unguarded, alone.Unguarded)
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

// restoreOne goes on with one record, or undoes what is left of it. alone, where it is
// not nil, notes what nobody guarded.
func (i *Instance) restoreOne(rec record, mounts []mount.Mount, alone *unguarded) error {
	if rec.Kind == kindBind {
		if alone == nil {
			return i.rebindLocked(rec)
		}
		alone.Files = append(alone.Files, rec.Path)
		return i.records.remove(rec.Path)
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
	goOn := i.reattachLocked
	if rec.Kind == kindMount {
		goOn = i.remountLocked
	}
	if err := goOn(rec, !mounted || rec.Left != ""); err != nil || guarded {
		return err
	}
	alone.used = append(alone.used, rec) // from now on it is guarded again
	return nil
}

// unguarded is what a start finds that nobody has guarded.
type unguarded struct {
	control.Unguarded
	used []record // what of it is in use
}

// tryTakeDown unmounts what nobody has guarded, and tells whether it is mounted
// then, and whether its filesystem lives.
func tryTakeDown(rec record, mounted bool) (stands, alive bool, err error) {
	if mounted {
		err := rec.takeOff(false)
		if stands = errors.Is(err, syscall.EBUSY); err != nil && !stands {
			return stands, true, err
		}
	}
	alive, err = rec.alive()
	return stands, alive, err
}

// dropLocked undoes the record of an attach or a mount that does not stand.
func (i *Instance) dropLocked(rec record) error {
	if rec.Left != "" && rec.Placeholder && i.usedLocked(rec.Path) {
		i.covered[rec.key()] = rec // what is there now uses what was made
		return nil
	}
	if err := dropPlaceholder(rec); err != nil {
		i.report("removing what was made to mount on", err)
	}
	err := i.records.remove(rec.key())
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
	i.files[rec.key()] = &attachedFile{record: rec, object: o, leaving: leaving}
	return nil
}

// unmountStrays takes down mounts of this root's filesystem images that no record
// explains.
func (i *Instance) unmountStrays(alone *unguarded) error {
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // the upper ones first
		if i.files[m.Point] != nil || i.mounts[m.Point] != nil || !isOwnMount(m, i.root.Dir()) {
			continue
		}
		at := record{Path: m.Point, Device: m.Device()}
		if err := at.takeOff(false); err != nil {
			i.note(fmt.Sprintf("a dead instance left %s: %v", m.Point, err))
			i.log.Error("unmounting what a dead instance left", "file", m.Point, "err", err)
		}
		alone.Files = append(alone.Files, m.Point)
	}
	return nil
}
