package publish

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// Indices are the SOCI indices of an image, the best first: of a version, or where that is
// 0 the one that the image names, and where it names none those that refer to it. What is
// none, or of another image, is left out, and of those that refer to it the ones that are
// listed behind maxIndices others: whoever may push can add to them.
func Indices(ctx context.Context, img *oci.Image, version int) (list []*soci.Index, err error) {
	manifest, err := img.Manifest(ctx, img.Digest)
	if errors.Is(err, source.ErrNotFound) {
		return nil, nil // an archive
	}
	if err != nil {
		return nil, err
	}
	if named, err := soci.IndexDigest(manifest); err == nil && named != "" && version != 1 {
		if list, err = addIndex(ctx, img, list, named, 2); err != nil {
			return nil, err
		}
	}
	if version == 2 || len(list) > 0 {
		return list, nil
	}
	refer, err := img.Referrers(ctx, soci.ArtifactV1)
	if err != nil {
		return nil, err
	}
	for _, d := range refer[:min(len(refer), maxIndices)] {
		if list, err = addIndex(ctx, img, list, d.Digest, 1); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// maxIndices bounds the index manifests that are read for one image.
const maxIndices = 16

// addIndex reads an index manifest that the registry should have.
func addIndex(ctx context.Context, img *oci.Image, list []*soci.Index, d digest.Digest, version int) ([]*soci.Index, error) {
	data, err := img.Manifest(ctx, d)
	if errors.Is(err, source.ErrNotFound) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	x, err := soci.ParseIndex(data)
	if err != nil || x.Version != version || version == 1 && x.Subject.Digest != img.Digest {
		return list, nil
	}
	return append(list, x), nil
}

// ErrNoIndex: an image has no SOCI index.
var ErrNoIndex = errors.New("no SOCI index")

// Opened is an image with the zTOCs of its best index, all of them verified.
type Opened struct {
	Index *soci.Index
	// Layers are all of the image, in their order.
	Layers []OpenedLayer

	image *oci.Image
}

// OpenedLayer is a layer with its zTOC.
type OpenedLayer struct {
	oci.Layer
	// Ztoc is nil where the layer has none; Info is what the index says of it.
	Ztoc *soci.Ztoc
	Info soci.LayerZtoc

	reader *soci.Reader
	small  *smallLayer // what was read of a layer without a zTOC, if it was
}

// OpenIndex reads the zTOCs of an image whole.
func OpenIndex(ctx context.Context, img *oci.Image) (*Opened, error) {
	list, err := Indices(ctx, img, 0)
	if err == nil && len(list) == 0 {
		err = ErrNoIndex
	}
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", img.Ref, err)
	}
	o := &Opened{Index: list[0], Layers: make([]OpenedLayer, len(img.Layers)), image: img}
	for n, l := range img.Layers {
		to := &o.Layers[n]
		to.Layer = l
		info, ok := o.Index.Find(l.Digest)
		if !ok {
			continue
		}
		if err := to.open(ctx, img, info); err != nil {
			return nil, fmt.Errorf("read zTOC %s of %s: %w", info.Ztoc, img.Ref, err)
		}
	}
	return o, nil
}

// maxZtoc bounds what is read of a zTOC into memory: 1 GiB of spans' windows are those
// of 128 GiB in spans of the usual size.
const maxZtoc = soci.MaxMetadata + 1<<30

func (l *OpenedLayer) open(ctx context.Context, img *oci.Image, info soci.LayerZtoc) (err error) {
	if info.Size > maxZtoc {
		return fmt.Errorf("%d bytes: %w", info.Size, toc.ErrLimit)
	}
	blob, err := img.Attached(ctx, info.Ztoc, info.Size)
	if err != nil {
		return err
	}
	blob = retry.Wrap(blob, retry.Policy{})
	defer func() { err = errors.Join(err, blob.Close()) }()
	body, err := blob.ReadRange(ctx, 0, info.Size)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return err
	}
	if digest.FromBytes(data) != info.Ztoc {
		return fmt.Errorf("it has other bytes: %w", toc.ErrDigest)
	}
	l.Info = info
	l.Ztoc, l.reader, err = openZtoc(ctx, data, l.Size)
	return err
}

func openZtoc(ctx context.Context, data []byte, layer int64) (*soci.Ztoc, *soci.Reader, error) {
	blob := mem.New(data)
	z, err := soci.Open(ctx, blob, layer)
	if err != nil {
		return nil, nil, err
	}
	r, err := soci.NewReader(z.Spans, blob)
	return z, r, err
}

// spanIndex is a zTOC as spans.Index.
type spanIndex struct{ *soci.Reader }

func (x spanIndex) Size() int64  { return x.Spans().Uncompressed }
func (x spanIndex) Close() error { return nil }

func (x spanIndex) Known(off int64) (from, end int64, known bool) { return x.Place(off) }

func (x spanIndex) Find(ctx context.Context, off int64) (spans.Span, error) {
	found, err := x.Covering(ctx, off, off+1)
	if err != nil {
		return spans.Span{}, err
	}
	s := &found[0]
	return spans.Span{From: s.Checkpoint, End: min(s.End, x.Size()), InEnd: s.BlobOff + s.BlobLen, Digest: s.Digest}, nil
}
