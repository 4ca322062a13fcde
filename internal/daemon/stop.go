package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/sys"
)

// busyPoll is how often a stopping instance looks whether files are still open.
const busyPoll = 200 * time.Millisecond

// busyWait is how long a stopping instance goes on serving files that are open.
const busyWait = 20 * time.Second

// stop takes everything down: bound directories, then mounts. Files that are
// open lose their name at once; their readers are served on for wait, 0: until
// they close. The error says who has files open even then: the group must not
// be closed yet.
func (i *Instance) stop(ctx context.Context, wait time.Duration) error {
	i.mu.Lock()
	i.stopping = true
	var errs []error
	for _, b := range i.bound {
		errs = append(errs, i.unbindLocked(b))
	}
	var busy []*attachedFile
	for _, f := range i.files {
		if f.object == nil {
			continue // its attach is going on, and fails
		}
		err := mount.Unmount(f.record.Path, false)
		if errors.Is(err, syscall.EBUSY) {
			i.log.Warn("file is in use, waiting for it to be closed", "file", f.record.Path, "by", i.usersOf(f))
			busy = append(busy, f)
			// The placeholder goes with the mount: it would read as an empty file.
			if err = mount.Unmount(f.record.Path, true); err == nil {
				err = dropPlaceholder(f.record)
			}
		} else if err == nil {
			err = i.forgetLocked(f)
		}
		errs = append(errs, err)
	}
	i.mu.Unlock()
	errs = append(errs, i.stopBusy(ctx, busy, wait))
	return errors.Join(errs...)
}

// stopBusy waits for the users of files that have lost their name.
func (i *Instance) stopBusy(ctx context.Context, busy []*attachedFile, wait time.Duration) error {
	if len(busy) == 0 {
		return nil
	}
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	var paths []string
	for _, f := range busy {
		paths = append(paths, f.object.cached.DataPath())
	}
	users, err := i.users(paths...)
	tick := time.NewTicker(busyPoll)
	defer tick.Stop()
	for len(users) > 0 && err == nil {
		select {
		case <-tick.C:
			users, err = i.users(paths...)
		case <-ctx.Done():
			return fmt.Errorf("files are still open, by process %s: missing data is denied to them until they close", strings.Join(users, ", process "))
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	errs := []error{err}
	for _, f := range busy {
		errs = append(errs, i.forgetLocked(f))
	}
	return errors.Join(errs...)
}

// Leftovers takes down what an instance that is gone has left below root, as
// its keeper must before it lets go of the group. The error says what stands.
func Leftovers(root string) error {
	r, err := openRecords(root)
	if err != nil {
		return err
	}
	list, err := r.list()
	if err != nil {
		return err
	}
	mounts, err := mount.List()
	if err != nil {
		return err
	}
	inUse := make(map[sys.Inode]bool)
	var errs []error
	for _, rec := range list {
		if rec.Kind != kindAttach {
			continue
		}
		if m, mounted := mount.At(mounts, rec.Path); mounted {
			ours, err := shows(m, root, rec.Object)
			if err == nil && ours {
				err = mount.Unmount(rec.Path, true)
			}
			errs = append(errs, err)
		}
		errs = append(errs, dropPlaceholder(rec))
		if st, err := os.Stat(root + dataSuffix(rec.Object)); err == nil {
			if s, ok := st.Sys().(*syscall.Stat_t); ok {
				inUse[sys.Inode{Dev: s.Dev, Ino: s.Ino}] = true
			}
		}
	}
	users, err := mount.Users(inUse)
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("files are still open, by process %v", users)
	}
	for _, rec := range list {
		errs = append(errs, r.remove(rec.Path))
	}
	return errors.Join(errs...)
}
