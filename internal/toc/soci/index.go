package soci

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/toc"
)

// The artifact types of index manifests (soci/soci_index.go). One of the first
// version says with its subject which image it is of; one of the second is named by
// an annotation of the image's manifest.
const (
	ArtifactV1 = "application/vnd.amazon.soci.index.v1+json"
	ArtifactV2 = "application/vnd.amazon.soci.index.v2+json"
)

const (
	mediaZtoc        = "application/octet-stream"
	mediaPrefetch    = "application/vnd.amazon.soci.prefetch.v1+json"
	artifactManifest = "application/vnd.oci.artifact.manifest.v1+json"

	annotationLayerType   = "com.amazon.soci.image-layer-mediaType"
	annotationLayer       = "com.amazon.soci.image-layer-digest"
	annotationSpanSize    = "com.amazon.soci.span-size"
	annotationTool        = "com.amazon.soci.build-tool-identifier"
	annotationImage       = "com.amazon.soci.image-manifest-digest"
	annotationIndexDigest = "com.amazon.soci.index-digest"
)

// emptyConfig is the configuration of every index manifest.
const emptyConfig = "{}"

// EmptyConfig is the blob that every index manifest refers to as its configuration.
func EmptyConfig() []byte { return []byte(emptyConfig) }

// Index is an index manifest: the zTOCs of an image's layers.
type Index struct {
	// Version is 1 or 2.
	Version int
	// Subject is the image's manifest; of version 2 nil.
	Subject *v1.Descriptor
	// Tool that made it.
	Tool string
	// Layers are those with a zTOC. Those that are smaller than the tool's
	// minimum, and those of other compressions, have none.
	Layers []LayerZtoc
}

// LayerZtoc is the zTOC of one layer.
type LayerZtoc struct {
	// Layer is the digest of the layer's blob, MediaType what the image says it is.
	Layer     digest.Digest
	MediaType string
	// Ztoc and Size are the digest and size of the zTOC's blob.
	Ztoc digest.Digest
	Size int64
	// SpanSize that it was made with; 0: not said.
	SpanSize int64
}

// document is an image manifest, or the artifact manifest that the first tools
// wrote and no specification has any more.
type document struct {
	v1.Manifest
	Blobs []v1.Descriptor `json:"blobs"`
}

// ParseIndex reads an index manifest, toc.ErrNotFormat where it is another one.
func ParseIndex(data []byte) (*Index, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("SOCI index: not JSON: %w", toc.ErrNotFormat)
	}
	kind, list := d.Config.MediaType, d.Manifest.Layers
	if d.MediaType == artifactManifest {
		kind, list = d.ArtifactType, d.Blobs
	}
	x := &Index{Subject: d.Subject, Tool: d.Annotations[annotationTool]}
	switch kind {
	case ArtifactV1:
		x.Version = 1
	case ArtifactV2:
		x.Version = 2
	default:
		return nil, fmt.Errorf("SOCI index: configuration of type %.100q: %w", kind, toc.ErrNotFormat)
	}
	if (x.Subject == nil) == (x.Version == 1) {
		return nil, fmt.Errorf("SOCI index of version %d, with a subject: %t: %w", x.Version, x.Subject != nil, toc.ErrInvalid)
	}
	if x.Subject != nil {
		if err := x.Subject.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("SOCI index: subject %.100q: %w", x.Subject.Digest, toc.ErrInvalid)
		}
	}
	for i, l := range list {
		if l.MediaType == mediaPrefetch {
			continue
		}
		z, err := layerZtoc(l)
		if err != nil {
			return nil, fmt.Errorf("SOCI index: zTOC %d of %d: %w", i+1, len(list), err)
		}
		if _, twice := x.Find(z.Layer); twice {
			return nil, fmt.Errorf("SOCI index: layer %.100s twice: %w", z.Layer, toc.ErrInvalid)
		}
		x.Layers = append(x.Layers, z)
	}
	return x, nil
}

func layerZtoc(l v1.Descriptor) (LayerZtoc, error) {
	z := LayerZtoc{
		Layer: digest.Digest(l.Annotations[annotationLayer]), MediaType: l.Annotations[annotationLayerType],
		Ztoc: l.Digest, Size: l.Size,
	}
	if l.MediaType != mediaZtoc {
		return z, fmt.Errorf("media type %.100q: %w", l.MediaType, toc.ErrInvalid)
	}
	for _, d := range []digest.Digest{z.Layer, z.Ztoc} {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return z, fmt.Errorf("digest %.100q: %w", d, toc.ErrInvalid)
		}
	}
	if z.Size <= 0 {
		return z, fmt.Errorf("%d bytes: %w", z.Size, toc.ErrInvalid)
	}
	if s, ok := l.Annotations[annotationSpanSize]; ok {
		var err error
		if z.SpanSize, err = strconv.ParseInt(s, 10, 64); err != nil || z.SpanSize < 0 {
			return z, fmt.Errorf("spans of %.40q bytes: %w", s, toc.ErrInvalid)
		}
	}
	return z, nil
}

// Find is the zTOC of a layer.
func (x *Index) Find(layer digest.Digest) (LayerZtoc, bool) {
	for _, z := range x.Layers {
		if z.Layer == layer {
			return z, true
		}
	}
	return LayerZtoc{}, false
}

// Marshal writes the index manifest as SOCI's tool does (soci/soci_index.go,
// MarshalIndex), bit for bit.
func (x *Index) Marshal() ([]byte, error) {
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config:      v1.Descriptor{MediaType: ArtifactV1, Digest: digest.FromString(emptyConfig), Size: int64(len(emptyConfig))},
		Annotations: map[string]string{annotationTool: x.Tool},
	}
	switch {
	case x.Version == 1 && x.Subject != nil:
		m.Subject = &v1.Descriptor{MediaType: x.Subject.MediaType, Digest: x.Subject.Digest, Size: x.Subject.Size}
	case x.Version == 2 && x.Subject == nil:
		m.Config.MediaType = ArtifactV2
	default:
		return nil, fmt.Errorf("write SOCI index of version %d, with a subject: %t: %w", x.Version, x.Subject != nil, toc.ErrInvalid)
	}
	for _, z := range x.Layers {
		m.Layers = append(m.Layers, v1.Descriptor{
			MediaType: mediaZtoc, Digest: z.Ztoc, Size: z.Size,
			Annotations: map[string]string{
				annotationLayerType: z.MediaType, annotationLayer: z.Layer.String(),
				annotationSpanSize: strconv.FormatInt(z.SpanSize, 10),
			},
		})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write SOCI index: %w", err)
	}
	return data, nil
}

// Descriptor is that of the index manifest data, which Marshal has written.
func (x *Index) Descriptor(data []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: ArtifactV1, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if x.Version == 2 {
		d.ArtifactType = ArtifactV2
	}
	return d
}

// IndexDigest is the digest of the index of version 2 that the image's manifest
// names; empty: none.
func IndexDigest(manifest []byte) (digest.Digest, error) {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return "", fmt.Errorf("image manifest: %w: %w", err, toc.ErrInvalid)
	}
	d := digest.Digest(m.Annotations[annotationIndexDigest])
	if d == "" {
		return "", nil
	}
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("image manifest: SOCI index %.100q: %w", d, toc.ErrInvalid)
	}
	return d, nil
}
