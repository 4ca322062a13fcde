package daemon

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/mount"
)

// Ways past the front end: readers that raise no event, or whose events are let
// through, and who would therefore see holes.

// loopUsers are loop devices over one of the files. Their reads skip the
// kernel's hook (drivers/block/loop.c since Linux 6.15): holes read as zeros.
func loopUsers(files map[string]bool) ([]string, error) {
	devices, err := mount.LoopDevices()
	if err != nil {
		return nil, err
	}
	var found []string
	for device, file := range devices {
		if files[file] {
			found = append(found, fmt.Sprintf("%s reads %s without waiting for what is missing, and sees zeros there: take it away, and set it up again once the file is complete", device, file))
		}
	}
	return found, nil
}

// checkLoops reports each loop device over an incomplete file of a bound directory
// once. Attached files are EROFS's, whose reads are stopped whoever asks for them.
func (i *Instance) checkLoops() {
	files := make(map[string]bool)
	i.mu.Lock()
	for _, b := range i.bound {
		for _, o := range b.dir.Objects() {
			if !o.Complete() {
				files[filepath.Join(b.record.Path, o.Leaf())] = true
			}
		}
	}
	i.mu.Unlock()
	if len(files) == 0 {
		return
	}
	found, err := loopUsers(files)
	if err != nil {
		i.report("looking for loop devices", err)
	}
	for _, f := range found {
		if !i.loops[f] {
			i.loops[f] = true
			i.report("a read that cannot be stopped", errors.New(f))
		}
	}
}

// refuseSourcesLocked refuses to bind a directory with a file that is a source
// of this instance.
func (i *Instance) refuseSourcesLocked(dir string) error {
	for _, o := range i.objects {
		if o.origin.Kind != originFile {
			continue
		}
		real, err := filepath.EvalSymlinks(o.origin.Name)
		if err == nil && filepath.Dir(real) == dir {
			return refuse(control.ExitInUse, "detach what comes from it first", "bind %s: %s in it is the source of an attached file", dir, filepath.Base(real))
		}
	}
	return nil
}
