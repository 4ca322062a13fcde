package daemon

import (
	"context"
	"time"

	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// CheckFormat tells whether an image can be asked for in a format of that name; empty
// is the best that each layer has.
func CheckFormat(name string) error { return prepare.Wish(name).Check() }

// indices are the SOCI indices of an image, which are looked for when its first layer
// without a table of contents of its own asks.
func (i *Instance) indices(img *oci.Image) prepare.Indices {
	look := make(chan []*soci.Index, 1) // holds what was found; nil: nobody has looked
	look <- nil
	return prepare.Indices{
		Find: func(ctx context.Context, l oci.Layer, version int) (*prepare.Ztoc, error) {
			var list []*soci.Index
			select {
			case list = <-look:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			defer func() { look <- list }()
			if list == nil {
				err := i.patiently(ctx, "looking for indices of "+img.Ref, func() (err error) {
					list, err = publish.Indices(ctx, img)
					return err
				})
				if err != nil {
					list = nil
					return nil, err
				}
			}
			return ztocOf(list, l, version), nil
		},
		Open: func(ctx context.Context, z prepare.Ztoc) (source.Blob, error) {
			blob, err := img.Attached(ctx, z.Digest, z.Size)
			if err != nil {
				return nil, err
			}
			where := layerOrigin(img, oci.Layer{Digest: z.Digest, Size: z.Size})
			where.Name = "zTOC " + z.Digest.String()
			return i.sources.wrap(where, blob), nil
		},
	}
}

// ztocOf is the layer's zTOC in the best index that has one, or in the best of a version
// that is not 0.
func ztocOf(list []*soci.Index, l oci.Layer, version int) *prepare.Ztoc {
	for _, x := range list {
		if z, ok := x.Find(l.Digest); ok && (version == 0 || version == x.Version) {
			return &prepare.Ztoc{Version: x.Version, Digest: z.Ztoc, Size: z.Size}
		}
	}
	return nil
}

// settleAgain is how long after a failure the rest of an index is asked for again.
const settleAgain = 30 * time.Second

// settle has the rest of a device's index read before a reader has to wait for it, so
// that it is there without a network from then on. The function that it returns ends
// that, and returns when it has ended.
func (i *Instance) settle(device source.Blob) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			err := prepare.Settle(ctx, device)
			switch {
			case err == nil || ctx.Err() != nil:
				return
			case !source.Temporary(err):
				i.report("reading the index of a layer", err)
				return
			}
			select {
			case <-time.After(settleAgain):
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
