package daemon

import (
	"context"
	"errors"
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
	// looked holds what was found, by the version that was asked for.
	looked := make(chan map[int]foundIndices, 1)
	looked <- make(map[int]foundIndices)
	return prepare.Indices{
		Find: func(ctx context.Context, l oci.Layer, version int) (*prepare.Ztoc, error) {
			var known map[int]foundIndices
			select {
			case known = <-looked:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			defer func() { looked <- known }()
			found, already := known[version]
			if !already {
				found.err = i.briefly(ctx, "looking for indices of "+img.Ref, func() (err error) {
					found.list, err = publish.Indices(ctx, img, version)
					return err
				})
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				known[version] = found
			}
			if found.err != nil {
				return nil, found.err
			}
			return ztocOf(found.list, l), nil
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

// foundIndices are the indices of an image, or why they could not be looked for: then each
// layer is told so, and nobody asks again.
type foundIndices struct {
	list []*soci.Index
	err  error
}

// ztocOf is the layer's zTOC in the best index that has one.
func ztocOf(list []*soci.Index, l oci.Layer) *prepare.Ztoc {
	for _, x := range list {
		if z, ok := x.Find(l.Digest); ok {
			return &prepare.Ztoc{Version: x.Version, Digest: z.Ztoc, Size: z.Size}
		}
	}
	return nil
}

const (
	// settleAfter is how long what is read at once, such as by a program that starts, has
	// the line for itself. A reader who needs an index reads it without waiting for that.
	settleAfter = 3 * time.Second
	// settleAgain is how long after a failure the rest of an index is asked for again.
	settleAgain = 30 * time.Second
)

// settle has the rest of a device's index read before a reader has to wait for it, so
// that it is there without a network from then on. end ends that, and does not wait: it
// may be about to sync a large file.
func (i *Instance) settle(device source.Blob) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		told := ""
		for wait := settleAfter; ; wait = settleAgain {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			err := prepare.Settle(ctx, device)
			if err == nil || ctx.Err() != nil {
				return
			}
			if text := err.Error(); text != told && !source.Temporary(err) {
				told = text
				i.report("reading the index of a layer", err)
			}
			if wrong := (*prepare.WrongIndexError)(nil); errors.As(err, &wrong) {
				return
			}
		}
	}()
	return cancel
}
