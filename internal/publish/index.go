package publish

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// MaxSpanSize is the largest that IndexOptions.SpanSize may be: a span of that much, of
// data that does not get smaller, with the blocks at its ends is one that can be read.
const MaxSpanSize = spans.MaxSpan/2 - 4<<20

// tool is how indices name who made them. It changes when what is made does, and not
// with versions of the program, so that an index that is made again is the same.
const tool = "Lacuna 1"

// IndexOptions say what index is made.
type IndexOptions struct {
	// Version of SOCI indices, 1 or 2.
	Version int
	// SpanSize is how far apart checkpoints are, at most MaxSpanSize.
	SpanSize int64
	// MinLayerSize is that of the smallest layer with a zTOC.
	MinLayerSize int64
	// Tag that the image gets where it is put; empty: none. Needed for version 2.
	Tag string
	// Report is told how it goes.
	Report Report
}

// Indexed is what Index has made.
type Indexed struct {
	// Digest is what the tag names: of version 2 the new index; of version 1 the
	// image as it was.
	Digest digest.Digest
	// Images are those with an index.
	Images []IndexedImage
}

// IndexedImage is one image with its index.
type IndexedImage struct {
	Platform string
	// Index is the digest of the index manifest.
	Index digest.Digest
	// Layers is how many there are, Ztocs how many have one, of Size bytes together.
	Layers, Ztocs int
	Size          int64
}

// indexer is one run of Index.
type indexer struct {
	maker
	options IndexOptions
}

// Index makes a SOCI index of each image of from, and puts it, and the images where
// they are not there yet, to a place. A layer that cannot have a zTOC is left out, with a
// note. ErrNothing: none can have one.
func Index(ctx context.Context, from *oci.Whole, to Place, o IndexOptions) (*Indexed, error) {
	x := &indexer{maker: maker{from: from, to: to, report: o.Report}, options: o}
	made, err := x.index(ctx)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", from.Ref, err)
	}
	return made, nil
}

func (x *indexer) index(ctx context.Context) (*Indexed, error) {
	manifests, err := x.manifests(ctx)
	if err != nil {
		return nil, err
	}
	blobs, err := blobsOf(manifests)
	if err != nil {
		return nil, err
	}
	ztocs, err := x.ztocs(ctx, blobs)
	if err != nil {
		return nil, err
	}
	if _, err := x.put(ctx, soci.EmptyConfig()); err != nil {
		return nil, err
	}
	if x.options.Version == 1 {
		return x.first(ctx, manifests, ztocs)
	}
	return x.second(ctx, manifests, ztocs)
}

// manifest is that of an entry of the index; nil: it is not there, and was not asked
// for. Indices may be of more images than there are.
func (m *maker) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	data, err := m.from.Manifest(ctx, d)
	asked := slices.ContainsFunc(m.from.Entries, func(e v1.Descriptor) bool { return e.Digest == d.Digest })
	if errors.Is(err, source.ErrNotFound) && !asked {
		return nil, nil
	}
	return data, err
}

// manifests are those of all entries of the index, in their order.
func (m *maker) manifests(ctx context.Context) (list [][]byte, err error) {
	for _, d := range m.from.Index.Manifests {
		data, err := m.manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		list = append(list, data)
	}
	return list, nil
}

// ztocs reads what must be read of blobs, and returns the zTOCs of layers.
func (x *indexer) ztocs(ctx context.Context, blobs []v1.Descriptor) (map[digest.Digest]soci.LayerZtoc, error) {
	layers := make(map[digest.Digest]oci.Layer)
	for _, img := range x.from.Images {
		for _, l := range img.Layers {
			layers[l.Digest] = l
		}
	}
	for _, d := range blobs {
		x.total += d.Size
	}
	made := make([]*soci.LayerZtoc, len(blobs))
	err := each(ctx, len(blobs), func(ctx context.Context, i int) (err error) {
		l, ok := layers[blobs[i].Digest]
		made[i], err = x.layer(ctx, blobs[i], l, ok && x.wanted(l))
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make(map[digest.Digest]soci.LayerZtoc)
	for _, z := range made {
		if z != nil {
			all[z.Layer] = *z
		}
	}
	return all, nil
}

// wanted tells whether a layer is to have a zTOC.
func (x *indexer) wanted(l oci.Layer) bool {
	switch {
	case l.Size < x.options.MinLayerSize || l.Size == 0:
		return false
	case strings.HasSuffix(l.MediaType, "zstd"):
		x.note("layer %.19s has no zTOC: it is compressed with zstd", l.Digest)
		return false
	}
	return true
}

// layer puts a blob where it is not there, and makes its zTOC, in one reading.
func (x *indexer) layer(ctx context.Context, d v1.Descriptor, l oci.Layer, wanted bool) (*soci.LayerZtoc, error) {
	has, err := x.has(ctx, d)
	if err != nil {
		return nil, err
	}
	var ztoc []byte
	build := func(in io.Reader) (err error) {
		if wanted {
			ztoc, err = soci.Build(ctx, in, soci.BuildOptions{
				SpanSize: x.options.SpanSize, Tool: tool, Stored: strings.HasSuffix(l.MediaType, ".tar"), MaxSpan: spans.MaxSpan,
			})
		}
		return err
	}
	switch {
	case has && !wanted:
		x.read(d.Size)
		return nil, nil
	case has:
		err = x.use(ctx, d, func(in *verifying) error { return build(in) })
	default:
		err = x.copying(ctx, d, build)
	}
	if leavesOut(err) {
		x.note("layer %.19s has no zTOC: %v", d.Digest, err)
		return nil, nil
	}
	if err != nil || !wanted {
		return nil, err
	}
	z, err := x.put(ctx, ztoc)
	if err != nil {
		return nil, err
	}
	return &soci.LayerZtoc{
		Layer: l.Digest, MediaType: l.MediaType, Ztoc: z.Digest, Size: z.Size, SpanSize: x.options.SpanSize,
	}, nil
}

// indices puts the index of each image that has zTOCs; subject is set in one of
// version 1.
func (x *indexer) indices(ctx context.Context, ztocs map[digest.Digest]soci.LayerZtoc) (all []IndexedImage, made []soci.Made, err error) {
	for n, img := range x.from.Images {
		entry := x.from.Entries[n]
		s := &soci.Index{Version: x.options.Version, Tool: tool}
		if s.Version == 1 {
			s.Subject = &entry
		}
		done := IndexedImage{Platform: img.Platform, Layers: len(img.Layers)}
		for _, l := range img.Layers {
			z, ok := ztocs[l.Digest]
			if _, twice := s.Find(l.Digest); !ok || twice {
				continue
			}
			z.MediaType = l.MediaType // two images may name it differently
			s.Layers = append(s.Layers, z)
			done.Ztocs++
			done.Size += z.Size
		}
		if done.Ztocs == 0 {
			x.note("the image for %s has no layer that is indexed", cmp.Or(img.Platform, "any platform"))
			continue
		}
		data, err := s.Marshal()
		if err != nil {
			return nil, nil, err
		}
		if err := x.putManifest(ctx, data, v1.MediaTypeImageManifest); err != nil {
			return nil, nil, err
		}
		d := s.Descriptor(data)
		done.Index = d.Digest
		platform := v1.Platform{}
		if entry.Platform != nil {
			platform = *entry.Platform
		}
		all = append(all, done)
		made = append(made, soci.Made{Manifest: entry.Digest, Platform: platform, Descriptor: d})
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("no layer of at least %d bytes can have a zTOC: %w", x.options.MinLayerSize, ErrNothing)
	}
	return all, made, nil
}

// first puts the image as it is, and what refers to it.
func (x *indexer) first(ctx context.Context, manifests [][]byte, ztocs map[digest.Digest]soci.LayerZtoc) (*Indexed, error) {
	for n, data := range manifests {
		if data == nil {
			continue
		}
		if err := x.putManifest(ctx, data, x.from.Index.Manifests[n].MediaType); err != nil {
			return nil, err
		}
	}
	if x.options.Tag != "" {
		if err := x.name(ctx, x.from.Root, x.from.RootType, x.options.Tag); err != nil {
			return nil, err
		}
	}
	all, _, err := x.indices(ctx, ztocs)
	if err != nil {
		return nil, err
	}
	return &Indexed{Digest: digest.FromBytes(x.from.Root), Images: all}, nil
}

// second puts the image that names its indices.
func (x *indexer) second(ctx context.Context, manifests [][]byte, ztocs map[digest.Digest]soci.LayerZtoc) (*Indexed, error) {
	all, made, err := x.indices(ctx, ztocs)
	if err != nil {
		return nil, err
	}
	byDigest := make(map[digest.Digest][]byte)
	for n, data := range manifests {
		d := x.from.Index.Manifests[n]
		byDigest[d.Digest] = data
		if d.ArtifactType != soci.ArtifactV2 || data == nil {
			continue
		}
		// An older index, of an image that gets no new one.
		if err := x.putManifest(ctx, data, d.MediaType); err != nil {
			return nil, err
		}
	}
	manifest := func(d v1.Descriptor) ([]byte, error) { return byDigest[d.Digest], nil }
	index, changed, err := soci.Enable(x.from.Index, manifest, made)
	if err != nil {
		return nil, err
	}
	if n := attestations(x.from.Index); n > 0 {
		x.note("attestations and the like are about the images as they were: %d stay in the index, and name no image any more", n)
	}
	for _, data := range changed {
		if err := x.putManifest(ctx, data, v1.MediaTypeImageManifest); err != nil {
			return nil, err
		}
	}
	if err := x.name(ctx, index, v1.MediaTypeImageIndex, x.options.Tag); err != nil {
		return nil, err
	}
	return &Indexed{Digest: digest.FromBytes(index), Images: all}, nil
}

// attestations is how many entries say that they are about another one (BuildKit,
// docs/attestations/attestation-storage.md), which has another digest in a new index.
func attestations(index v1.Index) (n int) {
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.digest"] != "" {
			n++
		}
	}
	return n
}

func newReader(data []byte) io.Reader { return bytes.NewReader(data) }
