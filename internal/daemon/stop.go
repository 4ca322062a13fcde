package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// busyPoll is how often a stopping instance looks whether files are still open.
const busyPoll = 200 * time.Millisecond

// busyWait is how long an instance that could not begin goes on serving files that
// are open before it leaves them to its keeper, which denies.
const busyWait = 20 * time.Second

// stop takes everything down: bound directories, then mounts. A file that is in
// use keeps its mount or its mark and is served on, for wait at most, 0: until it
// is free. looked is called each time that it is known what is in use.
// The error says what stands even then: the group must not be closed yet.
func (i *Instance) stop(ctx context.Context, wait time.Duration, looked func()) error {
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
		left, known, err := i.takeDownAll()
		i.mu.Lock()
		i.waits = left
		i.mu.Unlock()
		looked()
		if len(left) == 0 && known {
			return err
		}
		i.tellWaits(left, told)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, i.leaveBound(), stillUsed(left, ": missing data is denied until that ends"))
		}
	}
}

// tellWaits tells of what a stop waits for, once.
func (i *Instance) tellWaits(left []standing, told map[string]bool) {
	for _, l := range left {
		if told[l.path] {
			continue
		}
		args := []any{"path", l.path, "users", l.users()}
		if len(told) == 0 {
			hint := "`lacuna status` tells who is left"
			if !i.s.Systemd {
				hint += "; after a second signal it waits for nobody, and what is missing gives errors"
			}
			args = append(args, "hint", hint)
		}
		told[l.path] = true
		i.log.Warn("waiting for what is in use", args...)
	}
}

// waitsFor is what a stop waits for, and whom. It looks into all processes, so mu is
// not held.
func (i *Instance) waitsFor() (told []string) {
	i.mu.Lock()
	waits := i.waits
	i.mu.Unlock()
	for _, w := range waits {
		told = append(told, w.path+": "+w.users())
	}
	return told
}

// standing is what cannot be taken down yet.
type standing struct {
	path string
	// users names who uses it. It may look into all processes.
	users func() string
}

// standingError says what stands.
type standingError struct {
	paths []string
	text  string
}

// Error names who uses it.
func (e *standingError) Error() string { return e.text }

// stillUsed is the error that says what stands.
func stillUsed(left []standing, then string) error {
	e := &standingError{}
	var all []string
	for _, l := range left {
		e.paths = append(e.paths, l.path)
		all = append(all, l.path+": "+l.users())
	}
	e.text = fmt.Sprintf("still in use: %s%s", strings.Join(all, "; "), then)
	return e
}

// takeDownAll takes down what can be, and tells what is in use. Where it is not
// known that nothing else can be read, known is false.
func (i *Instance) takeDownAll() (left []standing, known bool, err error) {
	left, errs := i.takeDownBound()
	shown, more := i.takeDownShown()
	left, errs = append(left, shown...), append(errs, more...)
	if len(left) > 0 {
		return left, true, errors.Join(errs...)
	}
	// Nothing is served, and nobody begins to: mu is not needed for the rest.
	left, err = takeDown(i.root.Dir(), i.heldNow(), i.client.KeeperPID())
	return left, err == nil, errors.Join(append(errs, err)...)
}

// takeDownBound is takeDownAll for bound directories.
func (i *Instance) takeDownBound() (left []standing, errs []error) {
	i.mu.Lock()
	bound := slices.Collect(maps.Values(i.bound))
	i.mu.Unlock()
	for _, b := range bound {
		users, gone, err := i.boundUsers(b)
		if err != nil {
			users = []string{err.Error()}
		}
		switch {
		case gone:
		case len(users) > 0:
			left = append(left, standing{b.record.Path, func() string { return some(users) }})
		default:
			errs = append(errs, i.unbindOnce(b))
		}
	}
	return left, errs
}

// takeDownShown is takeDownAll for what is attached or mounted.
func (i *Instance) takeDownShown() (left []standing, errs []error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for key, m := range i.mounts {
		if m.metadata() == "" {
			continue // its mount is going on, and fails
		}
		err := m.record.takeOff(false)
		if err == nil {
			err = i.forgetMountLocked(m)
		}
		left, errs = i.stillThere(left, errs, m.record, err, i.mounts[key] != nil)
	}
	for path, f := range i.files {
		if f.object == nil {
			continue // its attach is going on, and fails; or takeDown finds it
		}
		err := f.record.takeOff(false)
		if err == nil {
			err = i.forgetLocked(f)
		}
		left, errs = i.stillThere(left, errs, f.record, err, i.files[path] != nil)
	}
	return left, errs
}

// stillThere adds to left what could not be taken off, or is not gone although it
// was, and to errs what went wrong otherwise.
func (i *Instance) stillThere(left []standing, errs []error, rec record, err error, there bool) ([]standing, []error) {
	switch {
	case errors.Is(err, syscall.EBUSY) || err == nil && there:
		left = append(left, standing{rec.Path, func() string { return rec.users(i.client.KeeperPID()) }})
	case err != nil && there:
		left = append(left, standing{rec.Path, func() string { return "somebody (" + err.Error() + ")" }})
	case err != nil:
		errs = append(errs, err)
	}
	return left, errs
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
		err = errors.Join(err, stillUsed(left, ""))
	}
	return err
}

// takeDown unmounts every mount here of root's filesystem images, undoes what the
// records say, and tells what could still read a hole. What cannot be undone
// otherwise does not keep it from the rest. With an error it is not known what
// stands.
func takeDown(root string, held keeper.Held, except ...int) (left []standing, err error) {
	recs, err := (records{filepath.Join(root, "served")}).list()
	if err != nil && len(recs) == 0 {
		recs = nil // what cannot be read is told of at the start
	}
	mounts, err := mount.List()
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(mounts) { // the upper ones first
		own := isOwnMount(m, root)
		for _, rec := range recs {
			own = own || rec.shows(m)
		}
		if !own {
			continue
		}
		at := record{Path: m.Point, Device: m.Device()}
		if err := at.takeOff(false); errors.Is(err, syscall.EBUSY) {
			left = append(left, standing{m.Point, func() string { return at.users(except...) }})
		} else if err != nil {
			left = append(left, standing{m.Point, func() string { return "somebody (" + err.Error() + ")" }})
		}
	}
	for _, rec := range recs {
		alive, err := rec.alive()
		if err != nil {
			return nil, err
		}
		told := slices.ContainsFunc(left, func(l standing) bool { return l.path == rec.Path })
		if alive && !told && !whole(root, rec) {
			left = append(left, standing{rec.Path, func() string { return rec.users(except...) }})
		}
	}
	bound, err := boundLeft(recs, held, except...)
	left = append(left, bound...)
	if len(left) > 0 || err != nil {
		return left, err
	}
	return nil, dropRecords(root)
}

// whole tells whether nothing of the record's objects is missing. In doubt it is not.
func whole(root string, rec record) bool {
	ids, err := shownIn(root, rec)
	if err != nil {
		return false
	}
	r, err := cache.OpenRootReadOnly(root)
	if err != nil {
		return false
	}
	complete := true
	for _, id := range ids {
		o, err := r.Object(id)
		if err != nil {
			complete = false
			break
		}
		complete = o.Complete() && complete
		if o.Close() != nil {
			complete = false
		}
	}
	return r.Close() == nil && complete
}

// shownIn is the objects whose data the record's filesystem reads.
func shownIn(root string, rec record) (ids []ondemand.ObjectID, err error) {
	switch {
	case rec.Kind == kindAttach:
		return []ondemand.ObjectID{ondemand.ObjectID(rec.Object)}, nil
	case rec.Kind != kindMount:
		return nil, errors.New("it is no filesystem")
	case rec.fromManifest():
		return nil, errors.New("what of it is verified only the instance knows")
	}
	plan, err := planIn(root, rec)
	if err != nil {
		return nil, err
	}
	for _, n := range plan.Devices {
		ids = append(ids, plan.Layers[n].Device)
	}
	return ids, nil
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
		alive, err := rec.alive()
		if err != nil || alive && rec.Placeholder {
			errs = append(errs, err)
			continue // it is complete, and mounted elsewhere: the next start undoes it
		}
		errs = append(errs, dropPlaceholder(rec), r.remove(rec.key()))
	}
	return errors.Join(errs...)
}
