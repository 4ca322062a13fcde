package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
)

// Hydrate fetches everything of an attached file or of a mount, and verifies it where
// a digest is known: from then on no source is needed.
func (i *Instance) Hydrate(ctx context.Context, q control.HydrateRequest, progress func(control.Progress)) error {
	path, err := directory("hydrate", q.File)
	if err != nil {
		return err
	}
	i.mu.Lock()
	m := i.mounts[path]
	mounted := m != nil && m.metadata() != ""
	i.mu.Unlock()
	if mounted {
		return i.hydrateMount(ctx, m, progress)
	}
	_, err = i.hydrate(ctx, path, progress)
	return err
}

// hydrate is Hydrate for an attached file.
func (i *Instance) hydrate(ctx context.Context, path string, progress func(control.Progress)) (*servedObject, error) {
	i.mu.Lock()
	f, err := i.attachedLocked("hydrate", path)
	if err != nil {
		i.mu.Unlock()
		return nil, err
	}
	object := f.object
	i.mu.Unlock()
	if err := i.hydrateObject(ctx, object, nil, func(present, total int64) { progress(control.Progress{Present: present, Total: total}) }); err != nil {
		return nil, fmt.Errorf("hydrate %s: %w", path, err)
	}
	return object, nil
}

// hydrateAtOnce is how many devices of a mount are fetched at a time: decoding them is
// work for several cores.
const hydrateAtOnce = 4

// hydrateMount fetches all devices. One that cannot be had does not keep it from the
// others.
func (i *Instance) hydrateMount(ctx context.Context, m *mountedImage, progress func(control.Progress)) error {
	i.mu.Lock()
	devices := append([]*servedObject(nil), m.devices...)
	i.mu.Unlock()
	var mu sync.Mutex        // of what follows
	var all control.Progress // with what is present of each device as it was seen last
	seen := make([]int64, len(devices))
	for n, o := range devices {
		seen[n] = o.cached.Present()
		all.Present += seen[n]
		all.Total += o.cached.Size()
	}
	errs := make([]error, len(devices))
	tasks := new(errgroup.Group)
	tasks.SetLimit(hydrateAtOnce)
	for n, o := range devices {
		var parts []fileset.Part
		if m.files != nil {
			parts = m.files.plan.Devices[n].Parts
		}
		tasks.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs[n] = i.hydrateObject(ctx, o, parts, func(present, _ int64) {
				mu.Lock()
				defer mu.Unlock()
				all.Present += present - seen[n]
				seen[n] = present
				progress(all)
			})
			return ctx.Err()
		})
	}
	if err := tasks.Wait(); err != nil {
		return err
	}
	var lost filesError
	for n, err := range errs {
		var files *filesError
		if errors.As(err, &files) {
			lost.failed = append(lost.failed, files.failed...)
			errs[n] = nil
		}
	}
	if len(lost.failed) > 0 {
		lost.of = m.files.plan.Files
		errs = append(errs, &lost)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("hydrate %s: %w", m.record.Path, err)
	}
	return nil
}

// hydrateObject fetches all of an object, durably. parts are those of a device of files.
func (i *Instance) hydrateObject(ctx context.Context, o *servedObject, parts []fileset.Part, progress func(present, total int64)) error {
	id := o.cached.ID()
	hydrate := i.fetcher.Hydrate
	if o.layer != nil && o.layer.index != nil {
		hydrate = i.fetcher.HydrateOnward // each span once
	}
	err := hydrate(ctx, id, progress)
	if o.set != nil && ctx.Err() == nil {
		err = i.hydrateParts(ctx, o, parts, err)
		progress(o.cached.Present(), o.cached.Size())
	}
	if err != nil {
		return err
	}
	if err := o.cached.Checkpoint(); err != nil {
		return err
	}
	return i.front.Settle(id)
}

// hydrateParts goes on after the hydration of a device of files has ended with err: a
// part that cannot be had ends it, and must not keep it from the others; and it does not
// wait for large parts to be verified.
func (i *Instance) hydrateParts(ctx context.Context, o *servedObject, parts []fileset.Part, err error) error {
	if err != nil && len(parts) > 1 {
		tasks := new(errgroup.Group)
		tasks.SetLimit(i.s.Config.ConnsPerHost)
		for n := range parts {
			if r := parts[n].Range(); !o.served.Has(r) {
				tasks.Go(func() error {
					if err := i.fetcher.Fill(ctx, o.cached.ID(), r); err != nil && ctx.Err() != nil {
						return ctx.Err() // any other error is among the set's
					}
					return nil
				})
			}
		}
		if err := tasks.Wait(); err != nil {
			return err
		}
		err = nil
	}
	if e := o.set.AwaitVerified(ctx); e != nil {
		return e
	}
	if o.served.Complete() {
		return nil
	}
	if failed := o.set.Failed(); len(failed) > 0 {
		return &filesError{failed: failed}
	}
	if err == nil {
		err = errors.New("not everything could be fetched")
	}
	return err
}

// filesError is that files of a manifest cannot be had.
type filesError struct {
	failed []fileset.Failure
	of     int // how many the manifest has
}

// Error names the first of them.
func (e *filesError) Error() string {
	var list []string
	for _, f := range e.failed {
		list = append(list, fmt.Sprintf("%s (%v)", f.Part.Path, f.Err))
	}
	return fmt.Sprintf("%d of %d files cannot be had: %s", len(e.failed), e.of, some(list))
}

// Unwrap is why they cannot be had.
func (e *filesError) Unwrap() (errs []error) {
	for _, f := range e.failed {
		errs = append(errs, f.Err)
	}
	return errs
}
