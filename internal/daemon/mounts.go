package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
)

// mountedImage is an image that is mounted, or was and is still in use.
type mountedImage struct {
	record  record
	plan    *prepare.Plan
	image   *oci.Image
	devices []*servedObject // in the order of the plan's devices
	leaving bool            // its mount is gone, its filesystem is not
}

// Mount makes an image appear as a directory: at its return all of its names are
// there, and reads of what is missing are filled. When it fails nothing is left
// behind but what was fetched.
func (i *Instance) Mount(ctx context.Context, q control.MountRequest) (reply control.MountReply, err error) {
	path, err := i.claimDir(q.Dir)
	if err != nil {
		return reply, err
	}
	defer func() {
		if err != nil {
			i.mu.Lock()
			delete(i.mounts, path)
			i.mu.Unlock()
		}
	}()
	rec := record{Kind: kindMount, Path: path, Mount: &q}
	if rec.Placeholder, err = needsDirectory(path); err != nil {
		return reply, err
	}
	img, plan, notes, err := i.prepare(ctx, q)
	if err != nil {
		return reply, err
	}
	rec.Plan = plan.Key
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		return reply, errors.Join(errStopping(), img.Close())
	}
	if err := i.mountLocked(ctx, rec, plan, img); err != nil {
		return reply, fmt.Errorf("mount %s on %s: %w", img.Ref, path, err)
	}
	reply = control.MountReply{Digest: img.Digest.String(), Layers: len(plan.Layers), Files: plan.Files, Notes: notes}
	for _, n := range plan.Devices {
		reply.Size += plan.Layers[n].Size
	}
	i.log.Info("mounted", "dir", path, "image", img.Ref, "digest", img.Digest, "layers", len(plan.Layers))
	return reply, nil
}

// claimDir checks the place and reserves it.
func (i *Instance) claimDir(dir string) (string, error) {
	path, err := canonical("mount", dir)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(i.root.Dir(), path); err == nil && !strings.HasPrefix(rel, "..") {
		return "", refuse(control.ExitUsage, "choose a place outside of it", "mount %s: it lies in the cache root %s", dir, i.root.Dir())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.stopping:
		return "", errStopping()
	case i.mounts[path] != nil:
		return "", refuse(control.ExitInUse, "`lacuna umount` it first", "mount %s: an image is mounted there", dir)
	case i.files[path] != nil || i.bound[path] != nil:
		return "", refuse(control.ExitInUse, "`lacuna detach` it first", "mount %s: something is attached there", dir)
	}
	i.mounts[path] = &mountedImage{}
	return path, nil
}

// needsDirectory tells whether the directory is absent; one that is there must
// be empty, and nothing mounted on it.
func needsDirectory(path string) (bool, error) {
	mounts, err := mount.List()
	if err != nil {
		return false, err
	}
	if _, mounted := mount.At(mounts, path); mounted {
		return false, refuse(control.ExitInUse, "umount it first, or choose another directory", "mount %s: something is mounted there", path)
	}
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", path, bare(err))
	}
	if !st.IsDir() {
		return false, refuse(control.ExitUsage, "choose another name", "mount %s: it is not a directory", path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", path, bare(err))
	}
	if len(entries) > 0 {
		return false, refuse(control.ExitUsage, "choose an empty directory or a name that is free", "mount %s: the directory is not empty", path)
	}
	return false, nil
}

// prepare opens the image and has everything made that a mount needs. Where its
// registry cannot be reached, what was mounted under the name before does.
func (i *Instance) prepare(ctx context.Context, q control.MountRequest) (img *oci.Image, plan *prepare.Plan, notes []string, err error) {
	asked := prepare.Asked{Ref: q.Image, Platform: q.Platform}
	err = i.patiently(ctx, "asking for "+q.Image, func() (err error) {
		img, err = oci.Open(ctx, q.Image, i.sources.imageOptions(q))
		return err
	})
	if err != nil {
		plan, e := i.library.Find(asked)
		if plan == nil || !errors.Is(err, source.ErrUnreachable) && !errors.Is(err, source.ErrBusy) {
			return nil, nil, nil, errors.Join(err, e)
		}
		notes = append(notes, fmt.Sprintf("the registry does not answer, this is what the name meant last: %v", err))
		img, err = i.sources.reopenImage(ctx, plan, q)
		return img, plan, notes, err
	}
	plan, err = i.library.Prepare(ctx, prepare.Job{
		Root: i.root, Image: img, Asked: asked,
		Blob: func(ctx context.Context, l oci.Layer) (source.Blob, error) { return i.layerBlob(ctx, img, l) },
		Meta: func(n int, l prepare.Layer) (cache.Meta, error) { return deviceMeta(img, n, l) },
	})
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("mount %s: %w", img.Ref, err), img.Close())
	}
	// What follows is done with mu held, and asks the registry nothing.
	img.AssumeRanges(plan.Sequential)
	for n, l := range plan.Layers {
		if !l.Verified {
			notes = append(notes, fmt.Sprintf("layer %d (%s, %s) has no digests that follow from the manifest: its data cannot be verified", n+1, shortDigest(img.Layers[n].Digest.String()), l.Format))
		}
	}
	return img, plan, notes, nil
}

func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

// patiently tries again for as long as somebody who mounts an image may wait.
func (i *Instance) patiently(ctx context.Context, what string, attempt func() error) error {
	return retry.Do(ctx, retry.Policy{
		Attempts: 4, Budget: 15 * time.Second,
		Failed: func(_ int, err error, wait time.Duration) { i.log.Warn(what, "wait", wait, "err", err) },
	}, attempt)
}

// layerBlob opens a layer with what all requests have.
func (i *Instance) layerBlob(ctx context.Context, img *oci.Image, l oci.Layer) (blob source.Blob, err error) {
	err = i.patiently(ctx, "opening a layer of "+img.Ref, func() (err error) {
		blob, err = l.Blob(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return i.sources.wrap(layerOrigin(l), blob), nil
}

// layerOrigin describes where a device's bytes come from: the layer, whichever image
// and registry it is found through.
func layerOrigin(l oci.Layer) origin {
	return origin{Kind: originLayer, Name: "layer " + l.Digest.String()}
}

func deviceMeta(img *oci.Image, n int, l prepare.Layer) (cache.Meta, error) {
	raw, err := json.Marshal(layerOrigin(img.Layers[n]))
	return cache.Meta{ID: l.Device, Size: l.Size, Source: raw}, err
}

// mountLocked does the local part. It owns img, and undoes what it has done when
// it fails.
func (i *Instance) mountLocked(ctx context.Context, rec record, plan *prepare.Plan, img *oci.Image) (err error) {
	m := &mountedImage{record: rec, plan: plan, image: img}
	undo := []func() error{func() error { return i.releaseDevicesLocked(m) }}
	defer func() {
		if err == nil {
			return
		}
		for n := len(undo) - 1; n >= 0; n-- {
			err = errors.Join(err, undo[n]())
		}
	}()
	if err := i.serveDevicesLocked(ctx, m); err != nil {
		return err
	}
	e := mount.EROFS{Image: plan.Metadata, ReadAhead: readAheadKiB}
	for _, o := range m.devices {
		e.Devices = append(e.Devices, o.cached.DataPath())
	}
	fs, err := e.Make()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.Close()) }()
	m.record.Superblock, m.record.Device = fs.Superblock, fs.Device
	if err := i.records.put(m.record); err != nil {
		return err
	}
	undo = append(undo, func() error { return i.records.remove(rec.Path) })
	if rec.Placeholder {
		if err := os.Mkdir(rec.Path, 0o755); err != nil {
			return fmt.Errorf("make the directory: %w", bare(err))
		}
		undo = append(undo, func() error { return os.Remove(rec.Path) })
	}
	if err := fs.MoveTo(rec.Path); err != nil {
		return err
	}
	i.mounts[rec.Path] = m
	return nil
}

// readAheadKiB is how far the kernel reads ahead in a mounted file: docs/benchmarks.md
// has the measurements.
const readAheadKiB = 512

// serveDevicesLocked has the front end stop reads of the image's devices.
func (i *Instance) serveDevicesLocked(ctx context.Context, m *mountedImage) error {
	for _, n := range m.plan.Devices {
		layer := m.plan.Layers[n]
		o := i.objects[layer.Device]
		if o != nil {
			o.files++
		} else {
			var err error
			if o, err = i.serveDevice(ctx, m, n); err != nil {
				return fmt.Errorf("layer %d: %w", n+1, err)
			}
		}
		m.devices = append(m.devices, o)
	}
	return nil
}

func (i *Instance) serveDevice(ctx context.Context, m *mountedImage, n int) (*servedObject, error) {
	layer, from := m.plan.Layers[n], m.image.Layers[n]
	blob, err := i.layerBlob(ctx, m.image, from)
	if err != nil {
		return nil, err
	}
	device := i.library.Device(layer, func() (source.Blob, error) { return blob, nil })
	meta, err := deviceMeta(m.image, n, layer)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	cached, err := i.root.Create(meta)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	where := layerOrigin(from)
	o, err := i.serveLocked(cached, where, device)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	o.asked, o.image = blob, m.image
	return o, nil
}

// releaseDevicesLocked takes the mount's devices back, and closes the images that
// nothing reads any more: a device that two images have is read through the one
// that was mounted first.
func (i *Instance) releaseDevicesLocked(m *mountedImage) error {
	var errs []error
	images := []*oci.Image{m.image}
	for _, o := range m.devices {
		asked := o.asked
		last := o.files == 1
		errs = append(errs, i.releaseLocked(o, false))
		if last {
			errs = append(errs, asked.Close())
			if !slices.Contains(images, o.image) {
				images = append(images, o.image)
			}
		}
	}
	m.devices = nil
	for _, img := range images {
		if !i.readsLocked(img) {
			errs = append(errs, img.Close())
		}
	}
	return errors.Join(errs...)
}

// readsLocked tells whether a mount or a device needs the image.
func (i *Instance) readsLocked(img *oci.Image) bool {
	for _, m := range i.mounts {
		if m.image == img {
			return true
		}
	}
	for _, o := range i.objects {
		if o.image == img {
			return true
		}
	}
	return false
}

// Umount undoes a mount. One that is in use stays, with ExitInUse, unless lazy.
func (i *Instance) Umount(_ context.Context, q control.UmountRequest) error {
	path, err := canonical("umount", q.Dir)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if f := i.files[path]; f != nil && f.broken != nil && f.record.Kind == kindMount {
		return i.detachBroken(f)
	}
	m := i.mounts[path]
	if m == nil || m.plan == nil {
		return refuse(control.ExitError, "`lacuna status` lists what is mounted", "umount %s: no image is mounted there", path)
	}
	if m.leaving {
		return refuse(control.ExitInUse, "let them close it", "umount %s: it is unmounted, and still in use by %s", path, m.record.users(i.client.KeeperPID()))
	}
	if err := m.record.takeOff(!q.Lazy && !m.complete(), q.Lazy); errors.Is(err, syscall.EBUSY) {
		return refuse(control.ExitInUse, "let them close it, or `lacuna umount --lazy`", "umount %s: in use by %s", path, m.record.users(i.client.KeeperPID()))
	} else if err != nil {
		return fmt.Errorf("umount %s: %w", path, err)
	}
	return i.forgetMountLocked(m)
}

// forgetMountLocked undoes the rest of a mount that is gone. While its filesystem
// lives, for those who have a file of it open or a mount of their own, its devices
// stay served.
func (i *Instance) forgetMountLocked(m *mountedImage) error {
	if !m.leaving && m.record.Placeholder {
		if err := os.Remove(m.record.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			i.report("removing the directory of a mount", err)
		}
	}
	alive, err := m.record.alive()
	if err != nil {
		return err
	}
	if alive && !m.complete() {
		if !m.leaving {
			m.leaving = true
			i.log.Info("unmounted, and still in use", "dir", m.record.Path)
		}
		return nil
	}
	delete(i.mounts, m.record.Path)
	err = errors.Join(i.records.remove(m.record.Path), i.releaseDevicesLocked(m))
	i.log.Info("unmounted", "dir", m.record.Path)
	return err
}

// forgetLeft releases what was left to its users and is not used any more.
func (i *Instance) forgetLeft() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range i.mounts {
		if m.leaving {
			if err := i.forgetMountLocked(m); err != nil {
				i.report("releasing "+m.record.Path, err)
			}
		}
	}
	for _, f := range i.files {
		if f.leaving {
			if err := i.forgetLocked(f); err != nil {
				i.report("releasing "+f.record.Path, err)
			}
		}
	}
}

// remountLocked goes on with a mount that stands.
func (i *Instance) remountLocked(rec record, leaving bool) error {
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
	if err := i.serveDevicesLocked(context.Background(), m); err != nil {
		return errors.Join(err, i.releaseDevicesLocked(m))
	}
	i.mounts[rec.Path] = m
	return nil
}

// restoreMount goes on with a recorded mount, or undoes what is left of it.
// alone, where it is not nil, notes what nobody guarded.
func (i *Instance) restoreMount(rec record, mounts []mount.Mount, alone *control.Unguarded) error {
	mounted := rec.standing(mounts)
	alive, err := rec.alive()
	if err != nil {
		return err
	}
	if alone == nil {
		if mounted || alive {
			return i.remountLocked(rec, !mounted)
		}
		return i.dropMount(rec)
	}
	if mounted {
		alone.Files = append(alone.Files, rec.Path)
		err := mount.Unmount(rec.Path, false)
		if errors.Is(err, syscall.EBUSY) {
			// In use: from now on it is guarded again.
			return i.remountLocked(rec, false)
		}
		if err != nil {
			return err
		}
	}
	return i.dropMount(rec)
}

// dropMount undoes the record of a mount that does not stand.
func (i *Instance) dropMount(rec record) error {
	if rec.Placeholder {
		if err := os.Remove(rec.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
			i.report("removing the directory of a mount", err)
		}
	}
	return i.records.remove(rec.Path)
}

// complete tells whether nothing of the image is missing.
func (m *mountedImage) complete() bool {
	for _, o := range m.devices {
		if !o.served.Complete() {
			return false
		}
	}
	return true
}

// mountedStatus is what status shows of a mount.
func (i *Instance) mountedStatus(m *mountedImage) control.Mounted {
	out := control.Mounted{
		Dir: m.record.Path, Image: m.image.Ref, Digest: m.image.Digest.String(), Leaving: m.leaving, Files: m.plan.Files,
	}
	served := make(map[ondemand.ObjectID]*servedObject)
	for _, o := range m.devices {
		served[o.cached.ID()] = o
	}
	for n, l := range m.plan.Layers {
		s := control.MountedLayer{Digest: m.image.Layers[n].Digest.String(), Format: string(l.Format), Size: l.Size, Verified: l.Verified}
		if o := served[l.Device]; o != nil {
			s.Object, s.Present = string(l.Device), o.cached.Present()
			front, _ := i.front.StatsOf(l.Device)
			asked := statsOf(o.asked)
			s.Hits, s.Misses, s.Requests, s.Fetched = front.Hits, front.Misses, uint64(asked.Requests), asked.Bytes
		}
		out.Layers = append(out.Layers, s)
	}
	return out
}
