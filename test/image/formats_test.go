package image

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	stargzchunked "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// layer is a layer as it lies in a registry.
type layer struct {
	blob, tar   []byte
	mediaType   types.MediaType
	annotations map[string]string
	// diffID and digest are what the image says, where it is to say something wrong.
	diffID, digest v1.Hash
}

func sum(b []byte) v1.Hash {
	s := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(s[:])}
}

func orElse(h v1.Hash, b []byte) (v1.Hash, error) {
	if h.Hex == "" {
		h = sum(b)
	}
	return h, nil
}

// These make a v1.Layer of it.
func (l *layer) Digest() (v1.Hash, error) { return orElse(l.digest, l.blob) }
func (l *layer) DiffID() (v1.Hash, error) { return orElse(l.diffID, l.tar) }
func (l *layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.blob)), nil
}
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}
func (l *layer) Size() (int64, error)                { return int64(len(l.blob)), nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

// format packs a tar as a layer.
type format struct {
	name string
	loss loss
	// indexed: it has a table of contents, so mounting it downloads nothing else.
	indexed bool
	pack    func(t testing.TB, tar []byte) *layer
	soci    int // version of the SOCI index that the image gets; 0: none
}

var formats = []format{
	{name: "estargz", loss: loss{fractions: true, bytes: true}, indexed: true, pack: packEStargz},
	{name: "gzip", pack: packGzip},
	{name: "zstdchunked", loss: loss{fractions: true, bytes: true}, indexed: true, pack: packZstdChunked},
	{name: "zstd", pack: packZstd},
	{name: "tar", pack: packTar},
	{name: "soci1", pack: packGzip, indexed: true, soci: 1},
	{name: "soci2", pack: packGzip, indexed: true, soci: 2},
}

func formatOf(name string) format {
	for _, f := range formats {
		if f.name == name {
			return f
		}
	}
	panic("image: internal error: no format " + name)
}

func packTar(_ testing.TB, tar []byte) *layer {
	return &layer{blob: tar, tar: tar, mediaType: types.OCIUncompressedLayer}
}

func packGzip(t testing.TB, tar []byte) *layer {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(tar)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return &layer{blob: b.Bytes(), tar: tar, mediaType: types.OCILayer}
}

func packZstd(t testing.TB, tar []byte) *layer {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(tar)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return &layer{blob: b.Bytes(), tar: tar, mediaType: types.OCILayerZStd}
}

const tocDigest = "containerd.io/snapshot/stargz/toc.digest"

func packEStargz(t testing.TB, tar []byte) *layer {
	t.Helper()
	blob, d := buildStargz(t, tar, stargz.WithCompressionLevel(gzip.BestSpeed), stargz.WithChunkSize(256<<10))
	return &layer{blob: blob, tar: decompress(t, blob), mediaType: types.OCILayer, annotations: map[string]string{tocDigest: d}}
}

func decompress(t testing.TB, blob []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	return all(t, r)
}

func packZstdChunked(t testing.TB, tar []byte) *layer {
	t.Helper()
	annotations := make(map[string]string)
	blob, d := buildStargz(t, tar, stargz.WithChunkSize(256<<10), stargz.WithCompression(struct {
		*stargzchunked.Compressor
		*stargzchunked.Decompressor
	}{&stargzchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations}, &stargzchunked.Decompressor{}}))
	annotations[tocDigest] = d
	r, err := zstd.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	return &layer{blob: blob, tar: all(t, r.IOReadCloser()), mediaType: types.OCILayerZStd, annotations: annotations}
}

func buildStargz(t testing.TB, tar []byte, opts ...stargz.Option) (blob []byte, toc string) {
	t.Helper()
	b, err := stargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return all(t, b), b.TOCDigest().String()
}

func all(t testing.TB, r io.ReadCloser) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// packed is an image with the tars of its layers as they are in the blobs.
type packed struct {
	v1.Image
	layers []*layer
	ztocs  [][]byte // of its index
	format format
	span   int64            // size of a SOCI index's spans; 0: small, so that there are many
	lie    func(*soci.Ztoc) // what the zTOCs say in place of what is true; nil: nothing
}

func (f format) packAll(t testing.TB, tars ...[]byte) *packed {
	t.Helper()
	p := &packed{format: f}
	for _, tar := range tars {
		p.layers = append(p.layers, f.pack(t, tar))
	}
	p.build(t)
	return p
}

// build makes the image of the layers.
func (p *packed) build(t testing.TB) {
	t.Helper()
	p.Image = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range p.layers {
		var err error
		p.Image, err = mutate.Append(p.Image, mutate.Addendum{Layer: l, MediaType: l.mediaType, Annotations: maps.Clone(l.annotations)})
		if err != nil {
			t.Fatal(err)
		}
	}
	config, err := p.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if p.Image, err = mutate.ConfigFile(p.Image, config); err != nil {
		t.Fatal(err)
	}
}

// tree is what the image is.
func (p *packed) tree(t testing.TB) *node {
	t.Helper()
	var tars [][]byte
	for _, l := range p.layers {
		tars = append(tars, l.tar)
	}
	return unpack(t, tars, p.format.loss)
}

// push pushes it to r and returns its reference.
func (p *packed) push(t testing.TB, r *ocitest.Registry) string {
	t.Helper()
	ref := r.Push(t, "image:"+p.format.name, p.Image)
	if p.format.soci > 0 {
		return p.index(t, ref, p.format.soci, cmp.Or(p.span, 64<<10))
	}
	return ref
}
