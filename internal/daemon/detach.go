package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Detach undoes an attach or a bind. A file in use stays attached, with ExitInUse.
func (i *Instance) Detach(ctx context.Context, q control.DetachRequest) error {
	return i.named(i.detach(ctx, q))
}

func (i *Instance) detach(ctx context.Context, q control.DetachRequest) (err error) {
	path, err := canonical("detach", q.Path)
	if err != nil {
		return err
	}
	i.mu.Lock()
	bound := i.bound[path]
	i.mu.Unlock()
	if bound != nil && !q.Hydrate {
		return i.unbind(path)
	}
	var whole *os.File
	var object *servedObject
	if q.Hydrate {
		if object, whole, err = i.copyOut(ctx, path); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, whole.Close()) }()
	}
	i.mu.Lock()
	f, err := i.attachedLocked("detach", path)
	// One that is complete may be mounted elsewhere: that goes on without us.
	missing := err == nil && f.broken == nil && !f.object.served.Complete()
	i.mu.Unlock()
	if err != nil {
		return err
	}
	if f.broken != nil {
		return i.detachBroken("detach", f, false)
	}
	if whole != nil && f.object != object {
		return refuse(control.ExitInUse, "detach it again", "detach %s: something else was attached there meanwhile", path)
	}
	if missing {
		err = f.record.alone()
	}
	if err == nil {
		err = i.takeOffFile(f, whole)
	}
	if errors.Is(err, syscall.EBUSY) {
		return &inUseError{record: f.record, hint: "let them close it, then detach again", text: "detach " + path + ": in use"}
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	i.log.Info("detached", "file", path)
	return nil
}

// takeOffFile unmounts f, and puts whole in its place where it is not nil.
func (i *Instance) takeOffFile(f *attachedFile, whole *os.File) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	path := f.record.Path
	if i.files[path] != f {
		return errors.New("another command has detached it meanwhile")
	}
	if f.leaving {
		return fmt.Errorf("%s is detached and still open: %w", path, syscall.EBUSY)
	}
	if err := f.record.takeOff(false); err != nil {
		return err
	}
	err := i.forgetLocked(f)
	if whole != nil {
		err = errors.Join(err, place(whole, path), i.uncoverLocked(path), i.records.remove(path))
	}
	return err
}

func (i *Instance) attachedLocked(verb, path string) (*attachedFile, error) {
	f := i.files[path]
	if i.bound[path] != nil {
		return nil, refuse(control.ExitUsage, "the external daemon has the data", "%s %s: it is a bound directory", verb, path)
	}
	if m := i.mounts[path]; m != nil && f == nil {
		hint := "only attached files are"
		if verb == "detach" {
			hint = "`lacuna umount` takes it away"
		}
		return nil, refuse(control.ExitUsage, hint, "%s %s: it is mounted, not attached", verb, path)
	}
	if f != nil && f.broken != nil && verb != "detach" {
		return nil, refuse(control.ExitCorrupt, "`lacuna detach` it, then attach it again", "%s %s: it cannot be served: %v", verb, path, f.broken)
	}
	if f == nil || f.object == nil && f.broken == nil {
		what := "it is not attached"
		if verb == "hydrate" {
			what = "nothing is attached or mounted there"
		}
		return nil, refuse(control.ExitError, "`lacuna status` lists what is attached", "%s %s: %s", verb, path, what)
	}
	return f, nil
}

// forgetLocked undoes the rest of an attach whose mount is gone. While somebody
// can read it, an incomplete object stays served. All steps are tried, and an error
// does not stop the next.
func (i *Instance) forgetLocked(f *attachedFile) error {
	alive, err := f.record.alive()
	if err != nil || alive && !f.object.served.Complete() {
		f.leaving = true
		return err
	}
	delete(i.files, f.record.key())
	return errors.Join(i.clearLocked(f.record, alive), i.releaseLocked(f.object, f.record.Forget))
}

// clearLocked takes away what was made for the record, and the record. While its
// filesystem is alive, mounted elsewhere, both stay: removing a name takes away the
// mounts on it in all namespaces (fs/namei.c, dont_mount and detach_mounts). So they do
// while the place is used again.
func (i *Instance) clearLocked(rec record, alive bool) error {
	if rec.Placeholder && (alive || i.usedLocked(rec.Path)) {
		return i.coverLocked(rec)
	}
	err := dropPlaceholder(rec)
	if errors.Is(err, syscall.EBUSY) { // somebody has mounted something on it
		return i.coverLocked(rec)
	}
	if err != nil {
		return err
	}
	return i.records.remove(rec.key())
}

// coverLocked keeps the record of what was made to mount on until that can be removed.
// It goes by a name of its own: what is served at its path meanwhile has another record.
func (i *Instance) coverLocked(rec record) error {
	rec, err := i.leftLocked(rec)
	i.covered[rec.key()] = rec
	return err
}

// uncoverLocked forgets what was made at path to mount on: something else took its place.
func (i *Instance) uncoverLocked(path string) error {
	var errs []error
	for key, rec := range i.covered {
		if rec.Path == path {
			delete(i.covered, key)
			errs = append(errs, i.records.remove(key))
		}
	}
	return errors.Join(errs...)
}

// usedLocked tells whether something is served at path, or is about to be.
func (i *Instance) usedLocked(path string) bool {
	return i.files[path] != nil || i.mounts[path] != nil || i.bound[path] != nil
}

// dropPlaceholder removes the file that an attach made, or the directory that a
// mount made, if it still is an empty one.
func dropPlaceholder(rec record) error {
	if !rec.Placeholder {
		return nil
	}
	st, err := os.Lstat(rec.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Kind == kindMount && st.IsDir() {
		err := os.Remove(rec.Path)
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != 0 {
		return nil // not what was made
	}
	return os.Remove(rec.Path)
}

// copyOut makes a whole copy of the attached file, on the same filesystem and
// without a name yet: nothing is left of it if it is not needed after all.
func (i *Instance) copyOut(ctx context.Context, path string) (object *servedObject, out *os.File, err error) {
	object, err = i.hydrate(ctx, path, func(control.Progress) {})
	if err != nil {
		return nil, nil, err
	}
	fd, err := sys.TempFile(filepath.Dir(path), 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("copy %s out: %w", path, err)
	}
	out = fd.File(path)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("copy %s out: %w", path, err), out.Close())
		}
	}()
	whole := ondemand.Range{Len: object.cached.Size()}
	if !object.cached.Has(whole) {
		return nil, nil, errors.New("data went missing while it was copied")
	}
	in, err := os.Open(object.cached.DataPath())
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	// Between two files of one filesystem the kernel copies, or shares blocks.
	n, err := out.ReadFrom(&io.LimitedReader{R: in, N: whole.Len})
	if err == nil && n != whole.Len {
		err = fmt.Errorf("copied %d bytes of %d", n, whole.Len)
	}
	return object, out, errors.Join(err, out.Chmod(0o644), out.Sync())
}

// place puts the copy where the attached file was.
func place(out *os.File, path string) error {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text())
	if err := sys.LinkFile(int(out.Fd()), name); err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return durable.SyncDir(filepath.Dir(path))
}
