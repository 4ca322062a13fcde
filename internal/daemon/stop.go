package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/sys"
)

// busyPoll is how often a stopping instance looks whether files are still open.
const busyPoll = 200 * time.Millisecond

// busyWait is how long a stopping instance goes on serving files that are open
// before it leaves them to its keeper, which denies.
const busyWait = 20 * time.Second

// stop takes everything down: bound directories, then mounts. A file that is in
// use keeps its mount or its mark and is served on, for wait at most, 0: until it
// is free.
// The error says what stands even then: the group must not be closed yet.
func (i *Instance) stop(ctx context.Context, wait time.Duration) error {
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	i.mu.Lock()
	i.stopping = true
	i.mu.Unlock()
	tick := time.NewTicker(busyPoll)
	defer tick.Stop()
	told := make(map[string]bool)
	for {
		left, err := i.takeDownAll()
		if len(left) == 0 {
			return err
		}
		for _, l := range left {
			if !told[l] {
				told[l] = true
				i.log.Warn("waiting for what is in use", "what", l)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, i.leaveBound(), fmt.Errorf("still in use: %s: missing data is denied until that ends", strings.Join(left, "; ")))
		}
	}
}

// takeDownAll takes down what can be, and tells what is in use.
func (i *Instance) takeDownAll() (left []string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var errs []error
	for path, b := range i.bound {
		users, err := i.boundUsers(b)
		switch {
		case err != nil:
			left = append(left, fmt.Sprintf("%s: %v", path, err))
		case len(users) > 0:
			left = append(left, fmt.Sprintf("%s: %s", path, some(users)))
		default:
			errs = append(errs, i.unbindLocked(b))
		}
	}
	for path, m := range i.mounts {
		if m.plan == nil {
			continue // its mount is going on, and fails
		}
		err := i.unmountImage(m, false)
		if err == nil {
			err = i.forgetMountLocked(m)
		}
		switch {
		case errors.Is(err, syscall.EBUSY) || err == nil && i.mounts[path] != nil:
			left = append(left, fmt.Sprintf("%s by %s", path, i.usersOfMount(m)))
		case err != nil:
			left = append(left, err.Error())
		}
	}
	for path, f := range i.files {
		if f.object == nil {
			continue // its attach is going on, and fails; or takeDown finds it
		}
		switch err := i.unmount(f); {
		case err == nil:
			errs = append(errs, i.forgetLocked(f))
		case errors.Is(err, syscall.EBUSY):
			left = append(left, fmt.Sprintf("%s by %s", path, i.usersOf(f)))
		default:
			left = append(left, err.Error())
		}
	}
	if len(left) > 0 {
		return left, errors.Join(errs...)
	}
	left, err = takeDown(i.root.Dir(), i.held, i.client.KeeperPID())
	return left, errors.Join(append(errs, err)...)
}

// leaveBound leaves the bound directories that are in use to the keeper, which
// denies: nobody connects to their devnodes any more.
func (i *Instance) leaveBound() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	var errs []error
	for _, b := range i.bound {
		errs = append(errs, b.server.Unlink())
	}
	return errors.Join(errs...)
}

// Leftovers takes down what an instance that is gone has left below root, as
// its keeper, which has held, must before it lets go of the group. The error
// says what stands.
func Leftovers(root string, held keeper.Held) error {
	left, err := takeDown(root, held)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("still in use: %s", strings.Join(left, "; ")))
	}
	return err
}

// takeDown unmounts every mount here that shows data of root's objects, undoes
// what the records say, and tells what could still read a hole: mounts and
// processes. What cannot be undone otherwise does not keep it from the rest.
func takeDown(root string, held keeper.Held, except ...int) (left []string, err error) {
	data, err := dataFiles(root)
	if err != nil {
		return nil, err
	}
	recs, err := (records{filepath.Join(root, "served")}).list()
	if err != nil && len(recs) == 0 {
		recs = nil // what cannot be read is told of at the start
	}
	mounts, err := mount.List()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if !showsAny(m, data) && !isOfRemoved(m, data, recs) {
			continue
		}
		if err := mount.Unmount(m.Point, false); err != nil {
			left = append(left, err.Error())
		}
	}
	sparse := make(map[sys.Inode]bool)
	for inode, incomplete := range data {
		if incomplete {
			sparse[inode] = true
		}
	}
	users, err := mount.Users(sparse, except...)
	for _, u := range users {
		left = append(left, "process "+u.String())
	}
	bound, boundErr := boundLeft(recs, held, except...)
	left, err = append(left, bound...), errors.Join(err, boundErr)
	if len(left) > 0 || err != nil {
		return left, err
	}
	return nil, dropRecords(root)
}

// dropRecords undoes what the records of things that are taken down say. One
// that cannot be read stays: there is nothing to do for it.
func dropRecords(root string) error {
	r, err := openRecords(root)
	if err != nil {
		return err
	}
	list, err := r.list()
	if err != nil && len(list) == 0 {
		return nil
	}
	var errs []error
	for _, rec := range list {
		errs = append(errs, dropPlaceholder(rec), r.remove(rec.Path))
	}
	return errors.Join(errs...)
}

// dataFiles are the data files of root's objects, and whether each has holes, as
// the disk space that it takes tells.
func dataFiles(root string) (map[sys.Inode]bool, error) {
	names, err := filepath.Glob(filepath.Join(root, "objects", "*", "*", "data"))
	if err != nil {
		return nil, err
	}
	data := make(map[sys.Inode]bool, len(names))
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			continue // removed meanwhile
		}
		if s, ok := st.Sys().(*syscall.Stat_t); ok {
			data[sys.Inode{Dev: s.Dev, Ino: s.Ino}] = s.Blocks*512 < s.Size // st_blocks: stat(2)
		}
	}
	return data, nil
}

// isOfRemoved tells whether m shows the data of a recorded object that has been
// removed, and then adds that to data: nobody knows any more what it has.
func isOfRemoved(m mount.Mount, data map[sys.Inode]bool, recs []record) bool {
	for _, rec := range recs {
		if rec.Kind != kindAttach || m.Point != rec.Path || !showsRemoved(m, rec.Object) {
			continue
		}
		inode, err := inodeOf(os.Stat(m.Point))
		if err != nil {
			return false
		}
		data[inode] = true
		return true
	}
	return false
}

// showsAny tells whether m is a mount of one of the data files.
func showsAny(m mount.Mount, data map[sys.Inode]bool) bool {
	if filepath.Base(m.Root) != "data" {
		return false
	}
	st, err := os.Stat(m.Point)
	if err != nil {
		return false
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	_, ours := data[sys.Inode{Dev: s.Dev, Ino: s.Ino}]
	return ours
}
