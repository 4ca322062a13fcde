package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
)

// layerBlob opens a layer with what all requests have.
func (i *Instance) layerBlob(ctx context.Context, img *oci.Image, l oci.Layer) (blob source.Blob, err error) {
	err = i.patiently(ctx, "opening a layer of "+img.Ref, func() (err error) {
		blob, err = l.Blob(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return i.sources.wrap(layerOrigin(img, l), blob), nil
}

// layerOrigin describes where a device's bytes come from: the layer, whichever image
// and registry it is found through. Its requests count as the registry's.
func layerOrigin(img *oci.Image, l oci.Layer) origin {
	o := origin{Kind: originLayer, Name: "layer " + l.Digest.String()}
	if !strings.HasPrefix(img.Ref, "oci-layout:") && !strings.HasPrefix(img.Ref, "docker-archive:") {
		registry, _, _ := strings.Cut(img.Ref, "/")
		o.group = "registry " + registry
	}
	return o
}

// nameOfLayer is layer n of an image for people.
func nameOfLayer(img *oci.Image, n int) string {
	return fmt.Sprintf("layer %d (%s)", n+1, shortDigest(img.Layers[n].Digest.String()))
}

func deviceMeta(img *oci.Image, n int, l prepare.Layer) (cache.Meta, error) {
	raw, err := json.Marshal(layerOrigin(img, img.Layers[n]))
	return cache.Meta{ID: l.Device, Size: l.Size, Source: raw}, err
}

// openDevice opens the object of a device.
type openDevice func(cache.Meta) (*cache.Object, error)

// standing opens an object whose data somebody may have mapped or marked, as it
// is. Making it anew would leave the old data to its readers, and making its size
// right raises an event that the caller may have to answer itself.
func (i *Instance) standing(meta cache.Meta) (*cache.Object, error) {
	st, err := os.Stat(i.root.Dir() + dataSuffix(string(meta.ID)))
	if err != nil {
		return nil, err
	}
	if want := cache.DataSize(meta.Size); st.Size() != want {
		return nil, fmt.Errorf("data of object %s has %d bytes, not %d: %w", meta.ID.Short(), st.Size(), want, cache.ErrCorrupt)
	}
	return i.root.Object(meta.ID)
}

// serveDevicesLocked has the front end stop reads of the image's devices. It goes
// on where one cannot be served.
func (i *Instance) serveDevicesLocked(ctx context.Context, m *mountedImage, open openDevice) error {
	if m.files != nil {
		return i.serveFilesLocked(m, open)
	}
	var errs []error
	for _, n := range m.plan.Devices {
		layer := m.plan.Layers[n]
		o := i.objects[layer.Device]
		if o != nil {
			o.files++
			i.addImageLocked(ctx, o, m, n)
		} else {
			var err error
			if o, err = i.serveDevice(ctx, m, n, open); err != nil {
				errs = append(errs, fmt.Errorf("%s, object %s: %w", nameOfLayer(m.image, n), layer.Device.Short(), err))
				continue
			}
		}
		m.devices = append(m.devices, o)
	}
	return errors.Join(errs...)
}

func (i *Instance) serveDevice(ctx context.Context, m *mountedImage, n int, open openDevice) (*servedObject, error) {
	layer, from := m.plan.Layers[n], m.image.Layers[n]
	where := layerOrigin(m.image, from)
	l := newServedLayer(i.sources.tallyOf(where), from, layer)
	err := i.patiently(ctx, "opening a layer of "+m.image.Ref, func() error { return l.add(ctx, i.sources, m, n) })
	if err != nil {
		return nil, err
	}
	asked := &tracedBlob{source.Wrapper{Blob: i.sources.again(where, l.origins)}, l.tally}
	device := i.library.Device(layer, func() (source.Blob, error) { return asked, nil }, func() (source.Blob, error) {
		return i.sources.again(where, l.index), nil
	})
	meta, err := deviceMeta(m.image, n, layer)
	if err != nil {
		return nil, errors.Join(err, asked.Close())
	}
	cached, err := open(meta)
	if err != nil {
		return nil, errors.Join(err, asked.Close())
	}
	o, err := i.serveLocked(cached, where, device)
	if err != nil {
		return nil, errors.Join(err, asked.Close())
	}
	o.asked, o.layer = asked, l
	if layer.Ztoc != nil {
		o.settling = i.settle(device)
	}
	return o, nil
}

// releaseDevicesLocked takes the mount's devices back, and closes the images that
// nothing reads any more.
func (i *Instance) releaseDevicesLocked(m *mountedImage) error {
	var errs []error
	images := []*oci.Image{m.image}
	for _, o := range m.devices {
		if o.layer != nil {
			images = append(images, o.layer.images()...)
		}
		if o.files > 1 {
			if o.layer != nil {
				errs = append(errs, o.layer.remove(m.image))
			}
			errs = append(errs, i.releaseLocked(o, false))
			continue
		}
		asked, layer := o.asked, o.layer
		errs = append(errs, i.releaseLocked(o, false), asked.Close())
		if layer != nil && layer.index != nil {
			errs = append(errs, layer.index.Close())
		}
	}
	m.devices = nil
	for n, img := range images {
		if img != nil && !slices.Contains(images[:n], img) && !i.readsLocked(img) {
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
		if o.layer != nil && slices.Contains(o.layer.images(), img) {
			return true
		}
	}
	return false
}
