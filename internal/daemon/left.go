package daemon

import (
	"maps"
	"slices"

	"github.com/lacunafs/lacuna/internal/mount"
)

// forgetLeft leaves to its users what others have unmounted, and releases what was
// left to them and is not used any more.
func (i *Instance) forgetLeft() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.noticeLocked()
	for _, m := range i.mounts {
		if m.leaving {
			if err := i.forgetMountLocked(m); err != nil {
				i.report("releasing "+m.record.Path, err)
			}
		}
	}
	for _, f := range i.files {
		if f.leaving {
			i.forgetFileLocked(f)
		}
	}
	i.clearCoveredLocked()
}

// forgetFileLocked releases a file that is not mounted any more, or what was attached
// or mounted and cannot be served, once nobody can read it.
func (i *Instance) forgetFileLocked(f *attachedFile) {
	forget := i.forgetLocked
	if f.broken != nil {
		alive, err := f.record.alive()
		if err != nil {
			i.report("releasing "+f.record.Path, err)
			return
		}
		f.leaving = true
		if alive {
			return
		}
		forget = i.forgetBrokenLocked
	}
	if err := forget(f); err != nil {
		i.report("releasing "+f.record.Path, err)
	}
}

// noticeLocked finds out which mounts somebody else has taken away, with umount(8) or
// with the filesystem that they were on. What they show is served for as long as
// anybody can read it, as after a lazy umount.
func (i *Instance) noticeLocked() {
	if len(i.mounts)+len(i.files) == 0 {
		return
	}
	mounts, err := mount.List()
	if err != nil {
		i.report("looking for what is mounted", err)
		return
	}
	for _, m := range i.mounts {
		if m.metadata() == "" || m.leaving || m.record.standing(mounts) {
			continue // it is not mounted yet, or known to be gone, or there
		}
		i.log.Info("somebody else has unmounted it", "dir", m.record.Path)
		if err := i.forgetMountLocked(m); err != nil {
			i.report("releasing "+m.record.Path, err)
		}
	}
	for _, f := range i.files {
		if f.object == nil && f.broken == nil || f.record.Kind == kindBind || f.leaving || f.record.standing(mounts) {
			continue
		}
		i.log.Info("somebody else has unmounted it", "file", f.record.Path)
		i.forgetFileLocked(f)
	}
}

// clearCoveredLocked removes what was made to mount on, once nothing is there any more.
func (i *Instance) clearCoveredLocked() {
	for _, key := range slices.Collect(maps.Keys(i.covered)) { // clearLocked may add it again
		rec := i.covered[key]
		if i.usedLocked(rec.Path) {
			continue
		}
		alive, err := rec.alive()
		if err == nil && alive {
			continue
		}
		delete(i.covered, key)
		if err == nil {
			err = i.clearLocked(rec, false)
		}
		if err != nil {
			i.report("removing what was made to mount on", err)
		}
	}
}
