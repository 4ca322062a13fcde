package daemon

import (
	"context"

	"github.com/lacunafs/lacuna/internal/control"
)

// remountLocked goes on with a mount that stands. Where some of its devices cannot
// be served it fails, and the others are: what is not served must stay marked, or
// its holes would be read.
func (i *Instance) remountLocked(rec record, leaving bool) error {
	if rec.fromManifest() {
		return i.remountFilesLocked(rec, leaving)
	}
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
	if err := i.serveDevicesLocked(context.Background(), m, i.standing); err != nil {
		i.files[rec.key()] = &attachedFile{record: rec, broken: err, half: m}
		return err
	}
	i.mounts[rec.key()] = m
	return nil
}
