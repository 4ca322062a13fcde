package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
)

// mountedImage is an image that is mounted, or was and is still in use.
type mountedImage struct {
	record  record
	plan    *prepare.Plan
	image   *oci.Image
	files   *manifestFiles  // of a manifest, in place of plan and image; all nil while it is being mounted
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
	if rec.fromManifest() {
		return i.mountManifest(ctx, rec, q)
	}
	img, plan, notes, err := i.prepare(ctx, q)
	if err != nil {
		return reply, err
	}
	rec.Plan = plan.Key
	// It may have taken long, and somebody else have used the place meanwhile.
	if rec.Placeholder, err = needsDirectory(path); err != nil {
		return reply, errors.Join(err, img.Close())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		return reply, errors.Join(errStopping(), img.Close())
	}
	if err := i.mountLocked(ctx, &mountedImage{record: rec, plan: plan, image: img}); err != nil {
		return reply, fmt.Errorf("mount %s on %s: %w", img.Ref, path, err)
	}
	reply = control.MountReply{Digest: img.Digest.String(), Layers: len(plan.Layers), Files: plan.Files, Notes: notes}
	for _, n := range plan.Devices {
		reply.Size += plan.Layers[n].Size
	}
	i.log.Info("mounted", "dir", path, "image", img.Ref, "digest", img.Digest, "layers", len(plan.Layers))
	return reply, nil
}

// prepare opens the image and has everything made that a mount needs. Where its
// registry cannot be reached, what was mounted under the name before does.
func (i *Instance) prepare(ctx context.Context, q control.MountRequest) (img *oci.Image, plan *prepare.Plan, notes []string, err error) {
	asked := prepare.Asked{Ref: q.Image, Platform: q.Platform, Hosts: q.HostsDir, Format: prepare.Wish(q.Format)}
	err = i.patiently(ctx, "asking for "+q.Image, func() (err error) {
		img, err = oci.Open(ctx, q.Image, i.sources.imageOptions(q))
		return err
	})
	if err != nil {
		plan, e := i.library.Find(asked)
		if plan == nil || !errors.Is(err, source.ErrUnreachable) && !errors.Is(err, source.ErrBusy) {
			return nil, nil, nil, errors.Join(&imageError{err}, e)
		}
		notes = append(notes, fmt.Sprintf("the registry does not answer, this is what the name meant last: %v", err))
		img, err = i.sources.reopenImage(ctx, plan, q)
		return img, plan, notes, err
	}
	plan, err = i.library.Prepare(ctx, prepare.Job{
		Root: i.root, Image: img, Asked: asked,
		Blob:    func(ctx context.Context, l oci.Layer) (source.Blob, error) { return i.layerBlob(ctx, img, l) },
		Indices: i.indices(img),
		Meta:    func(n int, l prepare.Layer) (cache.Meta, error) { return deviceMeta(img, n, l) },
	})
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("mount %s: %w", img.Ref, err), img.Close())
	}
	// What follows is done with mu held, and asks the registry nothing.
	img.AssumeRanges(plan.Sequential)
	if q.Platform == "" && !oci.RunsHere(img.Platform) {
		notes = append(notes, fmt.Sprintf("the image is for %s: its programs do not run on this machine", img.Platform))
	}
	for n, l := range plan.Layers {
		if l.Why != "" {
			notes = append(notes, fmt.Sprintf("layer %d (%s) is downloaded whole: %s", n+1, shortDigest(img.Layers[n].Digest.String()), l.Why))
		}
		if !l.Follows() {
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

// briefly is patiently for what an image can be mounted without.
func (i *Instance) briefly(ctx context.Context, what string, attempt func() error) error {
	return retry.Do(ctx, retry.Policy{
		Attempts: 4, Budget: 3 * time.Second, First: 300 * time.Millisecond,
		Failed: func(_ int, err error, wait time.Duration) { i.log.Warn(what, "wait", wait, "err", err) },
	}, attempt)
}

// mountLocked does the local part. It owns m's image, and undoes what it has done
// when it fails.
func (i *Instance) mountLocked(ctx context.Context, m *mountedImage) (err error) {
	rec := m.record
	undo := []func() error{func() error { return i.releaseDevicesLocked(m) }}
	defer func() {
		if err == nil {
			return
		}
		for n := len(undo) - 1; n >= 0; n-- {
			err = errors.Join(err, undo[n]())
		}
	}()
	if err := i.serveDevicesLocked(ctx, m, i.root.Create); err != nil {
		return err
	}
	e := erofsOf(m.metadata(), m.complete() && m.meanSize() >= directSize)
	for _, o := range m.devices {
		e.Devices = append(e.Devices, o.cached.DataPath())
	}
	made, err := e.Make()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, made.Close()) }()
	m.record.Superblock, m.record.Device = made.Superblock, made.Device
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
	if err := made.MoveTo(rec.Path); err != nil {
		return err
	}
	i.mounts[rec.Path] = m
	return nil
}

// readAheadKiB is how far the kernel reads ahead in a mounted file. Between 128 KiB
// and 4 MiB it makes no difference to what is missing: chunks are fetched whole, and
// package fetch reads ahead of sequential readers by itself. Large files that are
// present read faster from a cold page cache with 512 than with less, and no faster
// with more; and a page fault at random reads as much as this. docs/benchmarks.md has
// the measurements.
const readAheadKiB = 512

// directAheadKiB is that of mounts that read their devices past the page cache, where
// nothing else reads ahead.
const directAheadKiB = 1024

// erofsOf is how a filesystem image is mounted, but for its devices.
func erofsOf(metadata string, direct bool) mount.EROFS {
	if direct {
		return mount.EROFS{Image: metadata, ReadAhead: directAheadKiB, Direct: true}
	}
	return mount.EROFS{Image: metadata, ReadAhead: readAheadKiB}
}

// directSize is from which mean size of its files on a complete mount is read past the
// page cache of its devices, so that what is read is in memory once, and as fast as a
// plain file. Small files are read faster through it: what is read ahead of one in the
// device has the next ones.
const directSize = 1 << 20

// Umount undoes a mount. One that is in use stays, with ExitInUse, unless lazy.
func (i *Instance) Umount(_ context.Context, q control.UmountRequest) error {
	return i.named(i.umount(q))
}

func (i *Instance) umount(q control.UmountRequest) error {
	path, err := directory("umount", q.Dir)
	if err != nil {
		return err
	}
	i.mu.Lock()
	f := i.brokenLocked(path)
	m, err := i.mountedLocked(path)
	missing := err == nil && !m.complete()
	i.mu.Unlock()
	if f != nil && m == nil {
		return i.detachBroken("umount", f, q.Lazy)
	}
	if err != nil {
		return err
	}
	if missing && !q.Lazy {
		err = m.record.alone()
	}
	if err == nil {
		err = i.takeOffMount(m, q.Lazy)
	}
	if errors.Is(err, syscall.EBUSY) {
		return &inUseError{record: m.record, hint: "let them close it, or `lacuna umount --lazy`", text: "umount " + path + ": in use"}
	}
	return err
}

// mountedLocked is what is mounted on path.
func (i *Instance) mountedLocked(path string) (*mountedImage, error) {
	m := i.mounts[path]
	if m == nil && (i.files[path] != nil || i.bound[path] != nil) {
		return nil, refuse(control.ExitUsage, "`lacuna detach` takes it away", "umount %s: it is attached or bound, not mounted", path)
	}
	if m == nil || m.metadata() == "" {
		return nil, refuse(control.ExitError, "`lacuna status` lists what is mounted", "umount %s: nothing is mounted there", path)
	}
	if m.leaving {
		return nil, &inUseError{record: m.record, hint: "let them close it", text: "umount " + path + ": it is unmounted, and still in use"}
	}
	return m, nil
}

// takeOffMount unmounts m, unless another command has meanwhile.
func (i *Instance) takeOffMount(m *mountedImage, lazy bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now, err := i.mountedLocked(m.record.Path); err != nil {
		return err
	} else if now != m {
		return refuse(control.ExitInUse, "umount it again", "umount %s: something else was mounted there meanwhile", m.record.Path)
	}
	if err := m.record.takeOff(lazy); err != nil {
		return fmt.Errorf("umount %s: %w", m.record.Path, err)
	}
	// It is unmounted, whatever becomes of the rest: such as of what a full disk keeps
	// from being noted, which is only fetched again.
	if err := i.forgetMountLocked(m); err != nil {
		i.report("tidying up after "+m.record.Path, err)
	}
	return nil
}

// forgetMountLocked undoes the rest of a mount that is gone. While its filesystem
// lives, for those who have a file of it open or a mount of their own, its devices
// stay served.
func (i *Instance) forgetMountLocked(m *mountedImage) error {
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
	delete(i.mounts, m.record.key())
	err = errors.Join(i.clearLocked(m.record, alive), i.releaseDevicesLocked(m))
	i.clearCoveredLocked()
	i.log.Info("unmounted", "dir", m.record.Path)
	return err
}

// metadata is the path of its filesystem image; empty while it is being mounted.
func (m *mountedImage) metadata() string {
	switch {
	case m.files != nil:
		return m.files.plan.Metadata
	case m.plan != nil:
		return m.plan.Metadata
	}
	return ""
}

// meanSize is the mean size of the files that are shown, roughly: in whole blocks.
func (m *mountedImage) meanSize() int64 {
	files := 0
	switch {
	case m.files != nil:
		files = m.files.plan.Files
	case m.plan != nil:
		files = m.plan.Files
	}
	size := int64(0)
	for _, o := range m.devices {
		size += o.cached.Size()
	}
	return size / int64(max(1, files))
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
