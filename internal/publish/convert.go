package publish

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Format is one that layers are converted to.
type Format string

// The formats. Both have a table of contents of their own.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstdchunked"
)

// ConvertOptions say what becomes of the layers.
type ConvertOptions struct {
	// To is the format of the new layers.
	To Format
	// Tag that the image gets where it is put.
	Tag string
	// TempDir is where layers are unpacked while they are converted; empty: the system's.
	TempDir string
	// Report is told how it goes.
	Report Report
}

// Converted is what Convert has made.
type Converted struct {
	// Digest is what the tag names.
	Digest digest.Digest
	// Images are those that were converted.
	Images []ConvertedImage
}

// ConvertedImage is one image in the other format.
type ConvertedImage struct {
	Platform string
	Digest   digest.Digest
	// Layers is how many there are, Kept how many had the format already.
	Layers, Kept int
	// Before and After are their sizes together.
	Before, After int64
}

// parts is into how many pieces a layer is cut that are compressed at once. It shows in
// what is made, so it is the same on every machine.
const parts = 4

// converter is one run of Convert.
type converter struct {
	maker
	options ConvertOptions
	decode  toc.Decoders
}

// madeLayer is a layer as it is put.
type madeLayer struct {
	v1.Descriptor
	diffID digest.Digest
	kept   bool
}

// Convert makes, of each image of from, one whose layers have another format, and puts
// it to a place. What belongs to an image and is none, such as attestations, is left
// out, because it speaks of other bytes.
func Convert(ctx context.Context, from *oci.Whole, to Place, o ConvertOptions) (*Converted, error) {
	c := &converter{maker: maker{from: from, to: to, report: o.Report}, options: o}
	made, err := c.convert(ctx)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", from.Ref, err)
	}
	return made, nil
}

func (c *converter) convert(ctx context.Context) (*Converted, error) {
	layers, err := c.layers(ctx)
	if err != nil {
		return nil, err
	}
	made := &Converted{}
	index := v1.Index{Versioned: c.from.Index.Versioned, MediaType: v1.MediaTypeImageIndex, Annotations: plain(c.from.Index.Annotations)}
	var last []byte
	for n, img := range c.from.Images {
		image := ConvertedImage{Platform: img.Platform, Layers: len(img.Layers)}
		for _, l := range img.Layers {
			to := layers[l.Digest]
			image.Before, image.After = image.Before+l.Size, image.After+to.Size
			if to.kept {
				image.Kept++
			}
		}
		if last, err = c.image(ctx, n, layers); err != nil {
			return nil, err
		}
		image.Digest = digest.FromBytes(last)
		entry := c.from.Entries[n]
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: v1.MediaTypeImageManifest, Digest: image.Digest, Size: int64(len(last)),
			Platform: entry.Platform, Annotations: plain(entry.Annotations),
		})
		made.Images = append(made.Images, image)
	}
	if left := len(c.from.Index.Manifests) - len(c.from.Images); left > 0 {
		c.note("%d of %d manifests of the index are left out: they are of other platforms, or no images", left, len(c.from.Index.Manifests))
	}
	root, kind := last, v1.MediaTypeImageManifest
	if isIndex := c.from.Images[0].IndexDigest != ""; isIndex {
		if root, err = json.Marshal(index); err != nil {
			return nil, err
		}
		kind = v1.MediaTypeImageIndex
	}
	made.Digest = digest.FromBytes(root)
	return made, c.name(ctx, root, kind, c.options.Tag)
}

// Annotations that speak of a layer's very bytes begin like these: where SOCI's indices
// are of it; where the table of contents of a zstd layer lies and what it is, as podman
// (containers/storage, pkg/chunked/internal/minimal) and as stargz-snapshotter name it;
// and what its tar is.
const (
	ofSOCI     = "com.amazon.soci."
	ofPodman   = "io.github.containers.zstd-chunked."
	ofChunked  = "io.containers.zstd-chunked."
	ofUnpacked = "containerd.io/uncompressed"
)

// without is annotations without those that begin like any of the given.
func without(annotations map[string]string, beginnings ...string) map[string]string {
	annotations = maps.Clone(annotations)
	maps.DeleteFunc(annotations, func(k, _ string) bool {
		return slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(k, b) })
	})
	return annotations
}

// plain is annotations without those of SOCI, whose indices are of other layers.
func plain(annotations map[string]string) map[string]string { return without(annotations, ofSOCI) }

// annotations are those of a layer that is put, of which from were those of what it was:
// none of these may speak of other bytes, or of another format.
func (f Format) annotations(from map[string]string, to madeLayer) map[string]string {
	switch {
	case !to.kept:
		from = without(from, ofSOCI, ofPodman, ofChunked, ofUnpacked, estargz.TOCJSONDigestAnnotation, estargz.StoreUncompressedSizeAnnotation)
	case f == EStargz:
		from = without(from, ofSOCI, ofPodman, ofChunked)
	default:
		from = without(from, ofSOCI)
	}
	if from == nil {
		from = make(map[string]string)
	}
	maps.Copy(from, to.Annotations)
	return from
}

// image puts the configuration and the manifest of image n.
func (c *converter) image(ctx context.Context, n int, layers map[digest.Digest]madeLayer) ([]byte, error) {
	img := c.from.Images[n]
	data, err := c.from.Manifest(ctx, c.from.Entries[n])
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w: %w", img.Digest, err, source.ErrNotBytes)
	}
	diffIDs := make([]digest.Digest, len(img.Layers))
	m.Layers = nil
	for i, l := range img.Layers {
		to := layers[l.Digest]
		d := to.Descriptor
		d.Annotations = c.options.To.annotations(l.Annotations, to)
		m.Layers, diffIDs[i] = append(m.Layers, d), to.diffID
	}
	config, err := withDiffIDs(img.Config, diffIDs)
	if err != nil {
		return nil, err
	}
	if m.Config, err = c.put(ctx, config); err != nil {
		return nil, err
	}
	m.Config.MediaType, m.MediaType, m.Annotations = v1.MediaTypeImageConfig, v1.MediaTypeImageManifest, plain(m.Annotations)
	if data, err = json.Marshal(m); err != nil {
		return nil, err
	}
	return data, c.putManifest(ctx, data, v1.MediaTypeImageManifest)
}

// withDiffIDs is a configuration of other layers. What else it has stays as it is.
func withDiffIDs(config []byte, diffIDs []digest.Digest) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(config, &all); err != nil {
		return nil, fmt.Errorf("read the configuration: %w: %w", err, source.ErrNotBytes)
	}
	var err error
	if all["rootfs"], err = json.Marshal(v1.RootFS{Type: "layers", DiffIDs: diffIDs}); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// layers converts each layer once.
func (c *converter) layers(ctx context.Context) (map[digest.Digest]madeLayer, error) {
	var list []oci.Layer
	all := make(map[digest.Digest]madeLayer)
	for _, img := range c.from.Images {
		for _, l := range img.Layers {
			if _, twice := all[l.Digest]; twice {
				continue
			}
			all[l.Digest] = madeLayer{}
			list = append(list, l)
			c.total += l.Size
		}
	}
	made := make([]madeLayer, len(list))
	err := each(ctx, len(list), func(ctx context.Context, i int) (err error) {
		made[i], err = c.layer(ctx, list[i])
		if err != nil {
			err = fmt.Errorf("layer %.19s: %w", list[i].Digest, err)
		}
		return err
	})
	for i, l := range list {
		all[l.Digest] = made[i]
	}
	return all, err
}

// mediaType is that of layers in the format.
func (f Format) mediaType() string {
	if f == ZstdChunked {
		return v1.MediaTypeImageLayerZstd
	}
	return v1.MediaTypeImageLayerGzip
}

// has tells whether a layer says that it has the format already.
func (f Format) has(l oci.Layer) bool {
	if f == ZstdChunked {
		checksum := strings.TrimPrefix(zstdchunked.ManifestChecksumAnnotation, ofChunked)
		return strings.HasSuffix(l.MediaType, "zstd") && l.Annotations[ofChunked+checksum]+l.Annotations[ofPodman+checksum] != ""
	}
	return strings.HasSuffix(l.MediaType, "gzip") && l.Annotations[estargz.TOCJSONDigestAnnotation] != ""
}

// layer converts one.
func (c *converter) layer(ctx context.Context, l oci.Layer) (made madeLayer, err error) {
	d := v1.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
	if c.options.To.has(l) {
		there, err := c.has(ctx, d)
		if err == nil && !there {
			err = c.copying(ctx, d, func(io.Reader) error { return nil })
		} else {
			c.read(l.Size)
		}
		d.MediaType = c.options.To.mediaType()
		return madeLayer{Descriptor: d, diffID: l.DiffID, kept: true}, err
	}
	unpacked, err := c.tempFile()
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, unpacked.Close()) }()
	var size int64
	err = c.use(ctx, d, func(in *verifying) (err error) {
		size, err = c.unpack(unpacked, in, l)
		return err
	})
	if err != nil {
		return made, err
	}
	packed, err := c.tempFile()
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	if made, err = c.pack(packed, io.NewSectionReader(during{ctx, unpacked}, 0, size)); err != nil {
		return made, err
	}
	return made, c.putFrom(ctx, made.Descriptor, func() io.Reader { return io.NewSectionReader(packed, 0, made.Size) })
}

// tempFile has no name: it is gone with its last descriptor.
func (c *converter) tempFile() (*os.File, error) {
	f, err := os.CreateTemp(c.options.TempDir, "lacuna-convert-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unpack writes the layer's tar, which must be the one that its image says.
func (c *converter) unpack(out io.Writer, in io.Reader, l oci.Layer) (size int64, err error) {
	r, err := c.decode.Open(codecOf(l), in)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	sum := l.DiffID.Verifier()
	size, err = io.Copy(&disk{out}, io.TeeReader(r, sum))
	if err == nil && !sum.Verified() {
		err = fmt.Errorf("its tar is not %.19s: %w", l.DiffID, toc.ErrDigest)
	}
	return size, err
}

// disk marks the errors of writing.
type disk struct{ io.Writer }

func (d *disk) Write(p []byte) (int, error) {
	n, err := d.Writer.Write(p)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}

// during fails when its context has ended. The library is stopped by it: its own way,
// with a context, leaves goroutines behind.
type during struct {
	ctx context.Context
	io.ReaderAt
}

func (d during) ReadAt(p []byte, off int64) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	return d.ReaderAt.ReadAt(p, off)
}

// pack writes the layer of a tar in the new format.
func (c *converter) pack(out *os.File, tar *io.SectionReader) (made madeLayer, err error) {
	annotations := make(map[string]string)
	options := []estargz.Option{estargz.WithParallelism(parts), estargz.WithCompressionLevel(gzip.BestCompression)}
	if c.options.To == ZstdChunked {
		options = append(options, estargz.WithCompression(struct {
			*zstdchunked.Compressor
			*zstdchunked.Decompressor
		}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}, &zstdchunked.Decompressor{}}))
	}
	blob, err := estargz.Build(tar, options...)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	sum := digest.Canonical.Digester()
	size, err := io.Copy(io.MultiWriter(out, sum.Hash()), blob)
	if err != nil {
		// The library goes on writing until all is read.
		_, rest := io.Copy(io.Discard, blob)
		return made, errors.Join(err, rest)
	}
	uncompressed, err := blob.UncompressedSize()
	if err != nil {
		return made, err
	}
	annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	annotations[estargz.StoreUncompressedSizeAnnotation] = strconv.FormatInt(uncompressed, 10)
	return madeLayer{
		Descriptor: v1.Descriptor{MediaType: c.options.To.mediaType(), Digest: sum.Digest(), Size: size, Annotations: annotations},
		diffID:     blob.DiffID(),
	}, nil
}
