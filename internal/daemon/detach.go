package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Detach undoes an attach or a bind. A file in use stays attached, with ExitInUse.
func (i *Instance) Detach(ctx context.Context, q control.DetachRequest) error {
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
	copied := ""
	if q.Hydrate {
		if copied, err = i.copyOut(ctx, path); err != nil {
			return err
		}
		defer os.Remove(copied) //nolint:errcheck // it has been renamed where all went well
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	f, err := i.attachedLocked("detach", path)
	if err != nil {
		return err
	}
	if err := mount.Unmount(path, false); errors.Is(err, syscall.EBUSY) {
		return refuse(control.ExitInUse, "let them close it, then detach again", "detach %s: in use by %s", path, i.usersOf(f))
	} else if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	err = i.forgetLocked(f)
	if copied != "" {
		err = errors.Join(err, os.Rename(copied, path))
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	i.log.Info("detached", "file", path)
	return nil
}

func (i *Instance) attachedLocked(verb, path string) (*attachedFile, error) {
	f := i.files[path]
	if i.bound[path] != nil {
		return nil, refuse(control.ExitUsage, "the external daemon has the data", "%s %s: it is a bound directory", verb, path)
	}
	if f == nil || f.object == nil {
		return nil, refuse(control.ExitError, "`lacuna status` lists what is attached", "%s %s: it is not attached", verb, path)
	}
	return f, nil
}

// forgetLocked undoes the rest of an attach whose mount is gone. All steps are
// tried, and an error does not stop the next.
func (i *Instance) forgetLocked(f *attachedFile) error {
	delete(i.files, f.record.Path)
	err := dropPlaceholder(f.record)
	if err == nil {
		err = i.records.remove(f.record.Path)
	}
	return errors.Join(err, i.releaseLocked(f.object, f.record.Forget))
}

// dropPlaceholder removes the file that an attach made, if it still is an empty one.
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
	if !st.Mode().IsRegular() || st.Size() != 0 {
		return nil // not what was made
	}
	return os.Remove(rec.Path)
}

// usersOf names who has the file open or mapped.
func (i *Instance) usersOf(f *attachedFile) string {
	users, err := i.users(f.object.cached.DataPath())
	if err != nil {
		return "somebody (" + err.Error() + ")"
	}
	if len(users) == 0 {
		return "a process that is not visible here"
	}
	return "process " + strings.Join(users, ", process ")
}

func (i *Instance) users(paths ...string) ([]string, error) {
	files := make(map[sys.Inode]bool)
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if s, ok := st.Sys().(*syscall.Stat_t); ok {
			files[sys.Inode{Dev: s.Dev, Ino: s.Ino}] = true
		}
	}
	users, err := mount.Users(files, i.client.KeeperPID())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, u := range users {
		names = append(names, u.String())
	}
	return names, nil
}

// Hydrate fetches everything of an attached file, and verifies it where a
// digest is known.
func (i *Instance) Hydrate(ctx context.Context, q control.HydrateRequest, progress func(control.Progress)) error {
	path, err := canonical("hydrate", q.File)
	if err != nil {
		return err
	}
	_, err = i.hydrate(ctx, path, progress)
	return err
}

func (i *Instance) hydrate(ctx context.Context, path string, progress func(control.Progress)) (*servedObject, error) {
	i.mu.Lock()
	f, err := i.attachedLocked("hydrate", path)
	if err != nil {
		i.mu.Unlock()
		return nil, err
	}
	object := f.object
	i.mu.Unlock()
	id := object.cached.ID()
	err = i.fetcher.Hydrate(ctx, id, func(present, total int64) { progress(control.Progress{Present: present, Total: total}) })
	if err != nil {
		return nil, fmt.Errorf("hydrate %s: %w", path, err)
	}
	if err := object.cached.Checkpoint(); err != nil {
		return nil, fmt.Errorf("hydrate %s: %w", path, err)
	}
	return object, i.front.Settle(id)
}

// copyOut makes a whole copy of the attached file beside it and returns its name.
func (i *Instance) copyOut(ctx context.Context, path string) (name string, err error) {
	object, err := i.hydrate(ctx, path, func(control.Progress) {})
	if err != nil {
		return "", err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", fmt.Errorf("copy %s out: %w", path, err)
	}
	defer func() {
		if err = errors.Join(err, tmp.Close()); err != nil {
			err = errors.Join(fmt.Errorf("copy %s out: %w", path, err), os.Remove(tmp.Name()))
		}
	}()
	whole := ondemand.Range{Len: object.cached.Size()}
	if !object.cached.Has(whole) {
		return "", errors.New("data went missing while it was copied")
	}
	in, err := os.Open(object.cached.DataPath())
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	// Between two files of one filesystem the kernel copies, or shares blocks.
	n, err := tmp.ReadFrom(in)
	if err == nil && n != whole.Len {
		err = fmt.Errorf("copied %d bytes of %d", n, whole.Len)
	}
	return tmp.Name(), errors.Join(err, tmp.Chmod(0o644), tmp.Sync())
}
