package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
	"github.com/lacunafs/lacuna/internal/mount"
)

// What is attached or mounted is a filesystem of the kernel's, made of a
// filesystem image and of objects that are its devices. Its record has the number
// of its device, which tells its mounts from others, and the name of its
// superblock, which is there for as long as anybody can read a file of it: through
// a mount in whatever namespace, an open file, a mapping, a loop device. So an
// incomplete object stays served until the superblock is gone.

// shows tells whether m is a mount of the record's filesystem.
func (rec *record) shows(m mount.Mount) bool {
	return m.Type == "erofs" && m.Device() == rec.Device
}

// standing tells whether the record's mount stands, maybe with something else over it.
func (rec *record) standing(mounts []mount.Mount) bool {
	return slices.ContainsFunc(mounts, func(m mount.Mount) bool { return m.Point == rec.Path && rec.shows(m) })
}

// alive tells whether anybody can still read a file of the record's filesystem.
// A record without one was written before the filesystem was made.
func (rec *record) alive() (bool, error) {
	if rec.Superblock == "" {
		return false, nil
	}
	return mount.Alive(rec.Superblock)
}

// takeOff takes the record's mount away; EBUSY, wrapped, where it is in use. Where
// somebody else has unmounted it that is no error.
func (rec *record) takeOff(lazy bool) error {
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	if !rec.standing(mounts) {
		return nil
	}
	if m, mounted := mount.At(mounts, rec.Path); !mounted || !rec.shows(m) {
		return fmt.Errorf("something else is mounted over %s: %w", rec.Path, syscall.EBUSY)
	}
	return mount.Unmount(rec.Path, lazy)
}

// alone is an error that wraps EBUSY where the record's filesystem is shown elsewhere:
// umount(2) does not find that busy. It looks at all processes, so mu is not held.
// Who shows it elsewhere from then on is served on all the same: see alive.
func (rec *record) alone() error {
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	others, err := rec.elsewhere(mounts)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("unmount %s: %w", rec.Path, syscall.EBUSY)
	}
	return nil
}

// elsewhere is where the record's filesystem is shown besides: at other mount points,
// through overlays, in other mount namespaces. Copies that go with it do not count.
func (rec *record) elsewhere(mounts []mount.Mount) ([]string, error) {
	var found []string
	own, _ := mount.At(mounts, rec.Path)
	if !rec.shows(own) {
		own = mount.Mount{} // it has left, and something else is there
	}
	for _, m := range mounts {
		if m.Point != rec.Path && rec.shows(m) && !mount.Follows(mounts, own, mounts, m) {
			found = append(found, "a mount of it at "+m.Point)
		}
	}
	for _, point := range mount.Overlays(mounts, rec.Path) {
		found = append(found, "an overlay at "+point)
	}
	users, err := mount.Elsewhere(rec.Device)
	for _, u := range users {
		found = append(found, "process "+u.String())
	}
	return found, err
}

// users names who uses the record's filesystem. It looks into all processes, so mu is
// not held.
func (rec *record) users(except ...int) string {
	mounts, err := mount.List()
	if err != nil {
		return "somebody (" + err.Error() + ")"
	}
	if m, mounted := mount.At(mounts, rec.Path); mounted && !rec.shows(m) && rec.standing(mounts) {
		return "what is mounted over it"
	}
	found, err := rec.elsewhere(mounts)
	if err != nil {
		return "somebody (" + err.Error() + ")"
	}
	users, err := mount.UsersOf(rec.Device, except...)
	if err != nil {
		return "somebody (" + err.Error() + ")"
	}
	for _, u := range users {
		if !u.Elsewhere {
			found = append(found, "process "+u.String())
		}
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, rec.Path+"/") {
			found = append(found, "what is mounted in it at "+m.Point)
		}
	}
	loops, err := mount.LoopDevices()
	if err != nil {
		return "somebody (" + err.Error() + ")"
	}
	for device, file := range loops {
		if file == rec.Path || strings.HasPrefix(file, rec.Path+"/") {
			found = append(found, "the loop device "+device)
		}
	}
	if len(found) == 0 {
		return "somebody who is not visible here, such as an overlay in another mount namespace"
	}
	return some(found)
}

// inUseError is what cannot be taken away now. Who uses it is looked for without mu,
// by named: that looks into all processes.
type inUseError struct {
	record     record
	hint, text string
}

// Error is for the log only.
func (e *inUseError) Error() string { return e.text }

// named names the users where err is an inUseError.
func (i *Instance) named(err error) error {
	var busy *inUseError
	if !errors.As(err, &busy) {
		return err
	}
	return refuse(control.ExitInUse, busy.hint, "%s by %s", busy.text, busy.record.users(i.client.KeeperPID()))
}

// dropPageCache empties the page cache of all filesystems (proc_sys_vm(5), drop_caches),
// which needs no walk through trees and finds files that are open and have no name.
// What is mapped stays.
func dropPageCache() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
}

// isOwnMount tells whether m was made of a filesystem image below root.
func isOwnMount(m mount.Mount, root string) bool {
	return m.Type == "erofs" && (strings.HasPrefix(m.Source, filepath.Join(root, filesDir)+"/") ||
		strings.HasPrefix(m.Source, filepath.Join(root, "images")+"/") ||
		strings.HasPrefix(m.Source, filepath.Join(root, fileset.Dir)+"/"))
}

// stepDir is where the filesystem of an attached file is mounted for the moment
// that it takes to mount the file in it where it is wanted.
const stepDir = "step-"

// showFile mounts the one file of the filesystem at path.
func (i *Instance) showFile(shown *mount.Filesystem, path string) (err error) {
	step, err := os.MkdirTemp(i.root.Dir(), stepDir)
	if err != nil {
		return fmt.Errorf("make a directory to mount on: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(step)) }()
	if err := shown.MoveTo(step); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(step, true)) }()
	return mount.BindFile(filepath.Join(step, fileName), path)
}

// dropSteps takes away what a worker left that died in showFile.
func (i *Instance) dropSteps() error {
	steps, err := filepath.Glob(filepath.Join(i.root.Dir(), stepDir+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, step := range steps {
		if err := mount.Unmount(step, true); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(step))
	}
	return errors.Join(errs...)
}
