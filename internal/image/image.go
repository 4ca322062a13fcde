// Package image makes one filesystem of the layers of an OCI image: their tables
// of contents are merged as the OCI image specification says (layer.md,
// "Applying Changesets"), and the result is an EROFS filesystem image with one
// device for each layer that has data.
//
// It does no input or output and knows no sources: what it is given are valid
// tables of contents, what it returns is a tree that package erofs writes.
package image

import (
	"errors"
	"fmt"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Layer is one layer of an image.
type Layer struct {
	// TOC of the layer.
	TOC *toc.TOC
	// Tag names the layer's device in the filesystem image.
	Tag string
}

// Filesystem is a merged image.
type Filesystem struct {
	// Image is what package erofs writes.
	Image *erofs.Image
	// Layers are the indices of the layers that have a device, in the order of
	// Image.Devices.
	Layers []int
	// Files counts the names that are not a directory's.
	Files int
	// Dropped counts extended attributes that Linux has no name for, such as
	// those of other systems: nobody could read them.
	Dropped int
}

// ErrMerge: the layers do not fit together.
var ErrMerge = errors.New("layers do not fit together")

// Merge makes one filesystem of layers, the lowest first.
func Merge(layers []Layer) (*Filesystem, error) {
	out := &Filesystem{Image: &erofs.Image{}}
	m := &merger{root: newDirectory(), out: out}
	for i, l := range layers {
		if l.TOC.DeviceSize() > 0 {
			m.device = len(out.Layers)
			out.Layers = append(out.Layers, i)
			out.Image.Devices = append(out.Image.Devices, erofs.Device{
				Tag: l.Tag, Blocks: uint64(l.TOC.DeviceSize() / toc.BlockSize),
			})
		}
		if err := m.apply(l.TOC); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	out.Image.Root = m.root.finish(&out.Files)
	return out, nil
}
