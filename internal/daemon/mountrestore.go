package daemon

import (
	"context"
	"errors"
	"syscall"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/mount"
)

// restoreMount goes on with a recorded mount, or undoes what is left of it.
// alone, where it is not nil, notes what nobody guarded.
func (i *Instance) restoreMount(rec record, mounts []mount.Mount, alone *control.Unguarded) error {
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
		return i.dropMount(rec)
	}
	if err := i.remountLocked(rec, !mounted); err != nil || guarded {
		return err
	}
	// In use: from now on it is guarded again.
	alone.Users = append(alone.Users, rec.users(i.client.KeeperPID()))
	return nil
}

// tryTakeDown unmounts what nobody has guarded, and tells whether it is mounted
// then, and whether its filesystem lives.
func tryTakeDown(rec record, mounted bool) (stands, alive bool, err error) {
	if mounted {
		err := mount.Unmount(rec.Path, false)
		if stands = errors.Is(err, syscall.EBUSY); err != nil && !stands {
			return stands, true, err
		}
	}
	alive, err = rec.alive()
	return stands, alive, err
}

// remountLocked goes on with a mount that stands. Where some of its devices cannot
// be served it fails, and the others are: what is not served must stay marked, or
// its holes would be read.
func (i *Instance) remountLocked(rec record, leaving bool) error {
	if rec.fromManifest() {
		return i.remountFilesLocked(rec, leaving)
	}
	plan, err := i.library.Load(rec.Plan)
	if err != nil {
		return err
	}
	q := control.MountRequest{}
	if rec.Mount != nil {
		q = *rec.Mount
	}
	img, err := i.sources.reopenImage(context.Background(), plan, q)
	if err != nil {
		return err
	}
	m := &mountedImage{record: rec, plan: plan, image: img, leaving: leaving}
	if err := i.serveDevicesLocked(context.Background(), m, i.standing); err != nil {
		i.files[rec.Path] = &attachedFile{record: rec, broken: err, half: m}
		return err
	}
	i.mounts[rec.Path] = m
	return nil
}

// dropMount undoes the record of a mount that does not stand.
func (i *Instance) dropMount(rec record) error {
	if err := dropPlaceholder(rec); err != nil {
		i.report("removing the directory of a mount", err)
	}
	return i.records.remove(rec.Path)
}
