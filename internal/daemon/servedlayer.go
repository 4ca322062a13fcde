package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/late"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/trace"
)

// servedLayer is a layer by way of all images that have it: where one's registry
// fails, another's is asked. Its fields are guarded by the instance's mu.
type servedLayer struct {
	origins *origins.Blob
	tally   *trace.Tally  // of the requests to all of them
	index   *origins.Blob // its zTOC; nil: it has none
	from    []layerFrom
}

// layerFrom is a layer by way of one image.
type layerFrom struct {
	image *oci.Image
	blob  source.Blob
	index source.Blob // nil: it has none
}

func newServedLayer(tally *trace.Tally, from oci.Layer, l prepare.Layer) *servedLayer {
	s := &servedLayer{origins: origins.New(source.Identity{Size: from.Size, Validator: from.Digest.String()}), tally: tally}
	if z := l.Ztoc; z != nil {
		s.index = origins.New(source.Identity{Size: z.Size, Validator: z.Digest.String()})
	}
	return s
}

// add opens layer n of m's image as one more origin.
func (l *servedLayer) add(ctx context.Context, sources *opener, m *mountedImage, n int) error {
	from := m.image.Layers[n]
	where := layerOrigin(m.image, from)
	blob, err := openLater(ctx, where, from.Size, from.Blob)
	if err != nil {
		return err
	}
	blob = sources.bounded(l.tally, where, blob)
	if err := l.origins.Add(blob, placeOf(m)); err != nil {
		return err
	}
	added := layerFrom{image: m.image, blob: blob}
	if z := m.plan.Layers[n].Ztoc; z != nil && l.index != nil {
		if added.index, err = l.addIndex(ctx, sources, m, n, z); err != nil {
			return errors.Join(err, l.origins.Remove(blob))
		}
	}
	l.from = append(l.from, added)
	return nil
}

func (l *servedLayer) addIndex(ctx context.Context, sources *opener, m *mountedImage, n int, z *prepare.Ztoc) (source.Blob, error) {
	where := layerOrigin(m.image, m.image.Layers[n])
	blob, err := openLater(ctx, where, z.Size, func(ctx context.Context) (source.Blob, error) {
		return m.image.Attached(ctx, z.Digest, z.Size)
	})
	if err != nil {
		return nil, err
	}
	blob = sources.bounded(l.tally, where, blob)
	return blob, l.index.Add(blob, placeOf(m))
}

// openLater opens a blob of a registry now, which asks nobody, and one that lies in a
// file when it is first read: the disk may take its time, and the instance's mu is held.
func openLater(ctx context.Context, where origin, size int64, open func(context.Context) (source.Blob, error)) (source.Blob, error) {
	if where.group != "" {
		return open(ctx)
	}
	return late.New(late.Opener{Size: size, Open: open}), nil
}

// placeOf names who is asked for the layers of m's image, and as whom: what fails
// there for one mount fails for the others as well.
func placeOf(m *mountedImage) string {
	q := control.MountRequest{}
	if m.record.Mount != nil {
		q = *m.record.Mount
	}
	q.Dir, q.Image, q.Platform, q.Format = "", m.image.Place(), "", ""
	name, err := json.Marshal(q)
	if err != nil {
		return fmt.Sprintf("%p", m) // a place of its own
	}
	return string(name)
}

// addImageLocked has a device that is served be read through m's image as well, so
// that it outlives the registry of the image that was mounted first. Bytes that
// nothing but their registry vouches for stay that registry's. Where it cannot be
// opened the device is read as before.
func (i *Instance) addImageLocked(ctx context.Context, o *servedObject, m *mountedImage, n int) {
	layer := m.plan.Layers[n]
	if o.layer == nil || !layer.Follows() || o.layer.has(m.image) {
		return
	}
	if err := o.layer.add(ctx, i.sources, m, n); err != nil {
		i.log.Warn("a layer is not read through this image", "image", m.image.Ref, "layer", n+1, "err", err)
	}
}

func (l *servedLayer) has(img *oci.Image) bool {
	for _, f := range l.from {
		if f.image == img {
			return true
		}
	}
	return false
}

// images are those that the layer is read through.
func (l *servedLayer) images() (images []*oci.Image) {
	for _, f := range l.from {
		images = append(images, f.image)
	}
	return images
}

// remove ends reading through an image that is not mounted any more, unless it is
// the only one.
func (l *servedLayer) remove(img *oci.Image) error {
	for n, f := range l.from {
		if f.image == img && len(l.from) > 1 {
			l.from = append(l.from[:n:n], l.from[n+1:]...)
			err := l.origins.Remove(f.blob)
			if f.index != nil {
				err = errors.Join(err, l.index.Remove(f.index))
			}
			return err
		}
	}
	return nil
}
