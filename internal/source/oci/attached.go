package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// attachments is what else lies beside an image, which docker-archives have not.
type attachments interface {
	// attached are the manifests whose subject is the manifest d.
	attached(ctx context.Context, d digest.Digest) ([]v1.Descriptor, error)
	// named returns the manifest d, verified.
	named(ctx context.Context, d digest.Digest) ([]byte, error)
}

var (
	_ attachments = (*registry)(nil)
	_ attachments = (*layout)(nil)
)

// Referrers are the manifests of the given artifact type whose subject is the
// image's manifest, in the order in which they are listed; none where the
// registry has none, or knows no such thing (distribution-spec, "Listing Referrers").
func (i *Image) Referrers(ctx context.Context, artifactType string) ([]v1.Descriptor, error) {
	a, ok := i.blobs.(attachments)
	if !ok {
		return nil, nil
	}
	all, err := a.attached(ctx, i.Digest)
	if err != nil {
		return nil, fmt.Errorf("look for what refers to %s of %s: %w", short(i.Digest), i.Ref, err)
	}
	return slices.DeleteFunc(all, func(d v1.Descriptor) bool {
		return d.ArtifactType != artifactType || checkDescriptor(d) != nil || d.Size > jsonLimit
	}), nil
}

// Manifest returns a manifest of the image's repository by its digest: the image's
// own, or one that belongs to it.
func (i *Image) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	if d == i.Digest && i.manifest != nil {
		return i.manifest, nil
	}
	a, ok := i.blobs.(attachments)
	if !ok {
		return nil, fmt.Errorf("read manifest %s of %s: %w", short(d), i.Ref, source.ErrNotFound)
	}
	data, err := a.named(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s of %s: %w", short(d), i.Ref, err)
	}
	return data, nil
}

// Attached returns a blob of the image's repository that is no layer, by range.
func (i *Image) Attached(ctx context.Context, d digest.Digest, size int64) (source.Blob, error) {
	if err := d.Validate(); err != nil || size < 0 {
		return nil, fmt.Errorf("open blob %.100q of %d bytes: %w", d, size, ErrUnsupported)
	}
	b, err := i.blobs.blob(ctx, Layer{Digest: d, Size: size, image: i})
	if err != nil {
		return nil, fmt.Errorf("open blob %s of %s: %w", short(d), i.Ref, err)
	}
	return b, nil
}

// attached asks for the list, and where the registry has none for the index with
// the tag that clients keep instead (distribution-spec, "Referrers Tag Schema").
// Only the first page of a list is read.
func (r *registry) attached(ctx context.Context, d digest.Digest) ([]v1.Descriptor, error) {
	list := func(path string) ([]byte, error) {
		data, _, err := r.fetch(ctx, path, func(h *host) bool { return h.pull },
			func(data []byte, _ http.Header) error { _, err := parseList(data); return err })
		return data, err
	}
	data, err := list("/referrers/" + d.String())
	if lacksReferrers(err) {
		data, err = list("/manifests/" + d.Algorithm().String() + "-" + d.Encoded())
		if lacksReferrers(err) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return parseList(data)
}

// lacksReferrers tells whether err is the answer of a registry that has not, or
// knows not what was asked for.
func lacksReferrers(err error) bool {
	var status *ranged.StatusError
	return errors.Is(err, source.ErrNotFound) || errors.As(err, &status) &&
		(status.Status == http.StatusBadRequest || status.Status == http.StatusMethodNotAllowed || status.Status == http.StatusNotAcceptable)
}

// parseList reads an image index, whatever it was sent as.
func parseList(data []byte) ([]v1.Descriptor, error) {
	var index v1.Index
	err := json.Unmarshal(data, &index)
	if err != nil || index.Manifests == nil && index.MediaType != v1.MediaTypeImageIndex {
		return nil, fmt.Errorf("%w: the list of referrers is no index", source.ErrNotBytes)
	}
	return index.Manifests, nil
}

func (r *registry) named(ctx context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %.100q", ErrUnsupported, d)
	}
	data, _, err := r.fetch(ctx, "/manifests/"+d.String(), func(h *host) bool { return h.pull },
		func(data []byte, _ http.Header) error { return verifyDigest(data, d) })
	return data, err
}

// attached looks into all manifests that the layout's index lists.
func (l *layout) attached(_ context.Context, d digest.Digest) ([]v1.Descriptor, error) {
	data, err := readDocument(filepath.Join(l.ref.path, v1.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	list, err := parseList(data)
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, entry := range list {
		if entry.Digest == d || checkDescriptor(entry) != nil {
			continue
		}
		data, err := l.document(entry)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, source.ErrNotFound) {
			continue // layouts may hold a part of what they list
		}
		if err != nil {
			return nil, err
		}
		var m v1.Manifest
		if json.Unmarshal(data, &m) != nil || m.Subject == nil || m.Subject.Digest != d {
			continue
		}
		// What a registry would say of it (distribution-spec, "Listing Referrers").
		if entry.ArtifactType = m.ArtifactType; entry.ArtifactType == "" {
			entry.ArtifactType = m.Config.MediaType
		}
		found = append(found, entry)
	}
	return found, nil
}

func (l *layout) named(_ context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %.100q", ErrUnsupported, d)
	}
	data, err := readDocument(l.path(d))
	if err != nil {
		return nil, err
	}
	return data, verifyDigest(data, d)
}
