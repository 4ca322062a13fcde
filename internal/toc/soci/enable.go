package soci

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Made is an index of version 2 that was made for one platform of an image.
type Made struct {
	// Manifest is the digest of that image's manifest as it was.
	Manifest digest.Digest
	// Platform of the image.
	Platform v1.Platform
	// Descriptor of the index manifest.
	Descriptor v1.Descriptor
}

// Enable makes the index of an image with SOCI indices out of that of an image
// without (of a single image: one that names it, with its platform), as SOCI's tool
// does (soci/soci_convert.go, annotateImages, addSociIndexes): each manifest becomes
// one of OCI's types and names its index, and the indices come after them, or in the
// place of older ones of the same platform. Layers and configurations stay what they are.
//
// manifest returns the bytes of a manifest that list names; nil where they are not
// there, which no manifest that made is about may be. What is returned are the
// bytes of the new index, and of the new manifests.
func Enable(list v1.Index, manifest func(v1.Descriptor) ([]byte, error), made []Made) (index []byte, manifests [][]byte, err error) {
	list.MediaType, list.SchemaVersion = v1.MediaTypeImageIndex, 2
	list.Manifests = slices.Clone(list.Manifests)
	made = slices.Clone(made)
	for i := range list.Manifests {
		d := &list.Manifests[i]
		if d.ArtifactType == ArtifactV2 {
			continue
		}
		about := slices.IndexFunc(made, func(m Made) bool { return m.Manifest == d.Digest })
		data, err := manifest(*d)
		if err != nil {
			return nil, nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if data == nil && about < 0 {
			continue
		}
		var m v1.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, nil, fmt.Errorf("manifest %s: %w: %w", d.Digest, err, toc.ErrInvalid)
		}
		m.MediaType, m.Config.MediaType = v1.MediaTypeImageManifest, v1.MediaTypeImageConfig
		if about >= 0 {
			if m.Annotations == nil {
				m.Annotations = make(map[string]string)
			}
			m.Annotations[annotationIndexDigest] = made[about].Descriptor.Digest.String()
		}
		if data, err = json.Marshal(m); err != nil {
			return nil, nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		manifests = append(manifests, data)
		d.Digest, d.Size, d.MediaType, d.Annotations = digest.FromBytes(data), int64(len(data)), v1.MediaTypeImageManifest, m.Annotations
		if about >= 0 {
			made[about].Descriptor.Annotations = map[string]string{annotationImage: d.Digest.String()}
		}
	}
	for _, m := range made {
		d := m.Descriptor
		d.Platform = &m.Platform
		if d.Annotations == nil {
			return nil, nil, fmt.Errorf("index of %s: the image has no such manifest: %w", m.Manifest, toc.ErrInvalid)
		}
		older := slices.IndexFunc(list.Manifests, func(o v1.Descriptor) bool {
			return o.ArtifactType == ArtifactV2 && o.Platform != nil && samePlatform(*o.Platform, m.Platform)
		})
		if older >= 0 {
			list.Manifests[older] = d
		} else {
			list.Manifests = append(list.Manifests, d)
		}
	}
	if index, err = json.Marshal(list); err != nil {
		return nil, nil, fmt.Errorf("write image index: %w", err)
	}
	return index, manifests, nil
}

func samePlatform(a, b v1.Platform) bool {
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant && a.OSVersion == b.OSVersion
}
