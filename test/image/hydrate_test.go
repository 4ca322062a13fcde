package image

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/test/instance"
)

// A mounted image that was hydrated is complete, and is read, unmounted and mounted
// again while its registry is away.
func TestHydratedImageWorksOffline(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			registry, r := newFaulty(t)
			image := f.packAll(t, stormTars(t, 8)...)
			tree, ref := image.tree(t), image.push(t, r)
			m := start(t, "deadline = \"500ms\"\nstall = \"200ms\"\n")
			dir := m.mount(ref, "mnt")
			m.Lacuna("hydrate", dir)
			for _, l := range m.Status().Mounted[0].Layers {
				if l.Present != l.Size {
					t.Errorf("of layer %s %d of %d are present", l.Digest, l.Present, l.Size)
				}
			}
			registry.set(func() { registry.down = true })
			m.Lacuna("hydrate", dir) // again
			compare(t, dir, tree)
			worker := m.WaitWorker(0)
			m.Kill(worker)
			m.WaitWorker(worker)
			compare(t, dir, tree)
			m.umount(dir)
			compare(t, m.mount(ref, "mnt"), tree)
			m.umount(dir)
		})
	}
}

// Progress is of the whole mount, and does not go back.
func TestHydrateTellsProgressOfTheWholeMount(t *testing.T) {
	registry, r := newFaulty(t)
	image := formatOf("estargz").packAll(t, stormTars(t, 8)...)
	ref := image.push(t, r)
	m := start(t, "")
	dir := m.mount(ref, "mnt")
	registry.set(func() { registry.rate = 20 << 20 })
	client, err := control.Dial(t.Context(), filepath.Join(m.Root, "lacuna.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var last control.Progress
	err = client.Hydrate(t.Context(), control.HydrateRequest{File: dir}, func(p control.Progress) {
		if p.Present < last.Present || last.Total != 0 && p.Total != last.Total || p.Present > p.Total {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	})
	var size int64
	for _, l := range m.Status().Mounted[0].Layers {
		size += l.Size
	}
	if err != nil || last.Present != size || last.Total != size {
		t.Errorf("the last progress is %+v of %d bytes, %v", last, size, err)
	}
	m.umount(dir)
}

// What cannot be fetched is told with its exit status; what was fetched stays, and the
// same command goes on.
func TestHydrateOfAMountFailsAndGoesOn(t *testing.T) {
	registry, r := newFaulty(t)
	image := formatOf("zstdchunked").packAll(t, stormTars(t, 8)...)
	tree, ref := image.tree(t), image.push(t, r)
	m := start(t, "deadline = \"500ms\"\nstall = \"200ms\"\n")
	dir := m.mount(ref, "mnt")
	registry.set(func() { registry.down = true })
	if _, err := m.Try("hydrate", dir); instance.ExitOf(err) != 5 {
		t.Errorf("hydrate with the registry away: %v", err)
	}
	registry.set(func() { registry.down = false })
	instance.Eventually(t, 30*time.Second, func() error { _, err := m.Try("hydrate", dir); return err })
	registry.set(func() { registry.down = true })
	compare(t, dir, tree)
	m.umount(dir)
	if _, err := m.Try("hydrate", dir); instance.ExitOf(err) != 1 {
		t.Errorf("hydrate of what is not mounted: %v", err)
	}
}
