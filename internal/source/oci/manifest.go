package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
)

// Media types that Docker had before OCI (distribution's docs/content/spec/manifest-v2-2.md).
const (
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff."
	ociForeign     = "application/vnd.oci.image.layer.nondistributable."
	// Not of the specification, but pushed by many.
	dockerLayerZstd = dockerLayer + ".zstd"
)

// accepted is what a registry is asked for.
const accepted = v1.MediaTypeImageIndex + ", " + v1.MediaTypeImageManifest + ", " + dockerIndex + ", " + dockerManifest

// jsonLimit bounds indices, manifests and configurations; registries accept no
// larger manifests (distribution-spec, "Pushing Manifests").
const jsonLimit = 4 << 20

// document is an index or a manifest: what both have.
type document struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	ArtifactType  string          `json:"artifactType"`
}

// parseDocument reads an index or a manifest; kind is the media type that it
// came with, which what it says itself must not contradict.
func parseDocument(data []byte, kind string) (d document, isIndex bool, err error) {
	if err := json.Unmarshal(data, &d); err != nil {
		return d, false, fmt.Errorf("%w: the manifest is not JSON", source.ErrNotBytes)
	}
	if strings.HasPrefix(kind, dockerSchema1) || strings.HasPrefix(d.MediaType, dockerSchema1) || d.SchemaVersion == 1 {
		return d, false, fmt.Errorf("%w: a manifest of schema 1, which no registry should have any more; push the image again", ErrUnsupported)
	}
	if d.MediaType != "" {
		kind = d.MediaType
	}
	switch kind {
	case v1.MediaTypeImageIndex, dockerIndex:
		isIndex = true
	case v1.MediaTypeImageManifest, dockerManifest:
	default:
		// Without a media type its content says what it is.
		if d.MediaType != "" || (d.Config == nil) == (d.Manifests == nil) {
			return d, false, fmt.Errorf("%w: media type %q is neither an index nor a manifest", ErrUnsupported, kind)
		}
		isIndex = d.Manifests != nil
	}
	switch {
	case d.SchemaVersion != 2:
		return d, false, fmt.Errorf("%w: schema version %d", ErrUnsupported, d.SchemaVersion)
	case isIndex && (d.Config != nil || d.Layers != nil), !isIndex && d.Manifests != nil:
		// CVE-2021-41190: bytes that are one thing here and another there.
		return d, false, fmt.Errorf("%w: both an index and a manifest", ErrUnsupported)
	case !isIndex && d.Config == nil:
		return d, false, fmt.Errorf("%w: a manifest without a configuration", ErrUnsupported)
	}
	for _, l := range append(append([]v1.Descriptor{}, d.Manifests...), d.Layers...) {
		if err := checkDescriptor(l); err != nil {
			return d, false, err
		}
	}
	if !isIndex {
		err = checkDescriptor(*d.Config)
	}
	return d, isIndex, err
}

func checkDescriptor(d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: malformed digest in the manifest", ErrUnsupported)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: %s has size %d", ErrUnsupported, short(d.Digest), d.Size)
	}
	return nil
}

// layersOf returns the layers of a manifest with their DiffIDs from its configuration.
func layersOf(d document, config []byte) ([]Layer, platform, error) {
	var c v1.Image
	if err := json.Unmarshal(config, &c); err != nil || c.RootFS.Type != "layers" {
		return nil, platform{}, fmt.Errorf("%w: no image: the configuration (%s) names no layers", ErrUnsupported, d.Config.MediaType)
	}
	if len(c.RootFS.DiffIDs) != len(d.Layers) {
		return nil, platform{}, fmt.Errorf("%w: %d layers, but the configuration has %d DiffIDs",
			ErrUnsupported, len(d.Layers), len(c.RootFS.DiffIDs))
	}
	layers := make([]Layer, len(d.Layers))
	for i, l := range d.Layers {
		if err := checkLayer(l, c.RootFS.DiffIDs[i]); err != nil {
			return nil, platform{}, fmt.Errorf("layer %d (%s): %w", i+1, short(l.Digest), err)
		}
		layers[i] = Layer{
			Digest: l.Digest, Size: l.Size, MediaType: l.MediaType, Annotations: l.Annotations, DiffID: c.RootFS.DiffIDs[i],
		}
	}
	return layers, platformOf(&c.Platform), nil
}

func checkLayer(l v1.Descriptor, diffID digest.Digest) error {
	if err := diffID.Validate(); err != nil {
		return fmt.Errorf("%w: malformed DiffID", ErrUnsupported)
	}
	switch l.MediaType {
	case v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd,
		dockerLayer, dockerLayer + ".gzip", dockerLayerZstd:
	default:
		if strings.HasPrefix(l.MediaType, dockerForeign) || strings.HasPrefix(l.MediaType, ociForeign) {
			return fmt.Errorf("%w: a foreign layer, which the registry does not have", ErrUnsupported)
		}
		return fmt.Errorf("%w: media type %q is no layer that can be read", ErrUnsupported, l.MediaType)
	}
	return nil
}

// verify compares data with what d says of it.
func verify(data []byte, d v1.Descriptor) error {
	if int64(len(data)) != d.Size {
		return &wrongBytes{fmt.Sprintf("%s has %d bytes, the descriptor says %d", short(d.Digest), len(data), d.Size)}
	}
	return verifyDigest(data, d.Digest)
}

func verifyDigest(data []byte, d digest.Digest) error {
	if got := d.Algorithm().FromBytes(data); got != d {
		return &wrongBytes{fmt.Sprintf("%s came with the digest %s", short(d), short(got))}
	}
	return nil
}

// wrongBytes is a source.ErrNotBytes: a mirror may be better.
type wrongBytes struct{ what string }

func (e *wrongBytes) Error() string { return source.ErrNotBytes.Error() + ": " + e.what }
func (e *wrongBytes) Unwrap() error { return source.ErrNotBytes }

// Errors that are about images and not about how to get them.
var (
	// ErrUnsupported: an image, or something else, that this package does not read.
	ErrUnsupported = errors.New("unsupported image")
	// ErrNoPlatform: the index has no image for the platform.
	ErrNoPlatform = errors.New("no image")
	// ErrSeveral: a layout or an archive has several images, and none of them is named.
	ErrSeveral = errors.New("no image is named")
)
