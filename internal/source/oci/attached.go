package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// attachments is what else lies beside an image, which docker-archives have not.
type attachments interface {
	// attached are the manifests of the type whose subject is the manifest d.
	attached(ctx context.Context, d digest.Digest, artifactType string) ([]v1.Descriptor, error)
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
	found, err := a.attached(ctx, i.Digest, artifactType)
	if err != nil {
		return nil, fmt.Errorf("look for what refers to %s of %s: %w", short(i.Digest), i.Ref, err)
	}
	return found, nil
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

// maxPages bounds the answers that are read of one list.
const maxPages = 32

// errEmpty: a mirror knows of nothing, which the registry itself may.
var errEmpty = fmt.Errorf("%w: its list of referrers is empty", source.ErrNotFound)

// attached asks for the list, and where the registry has none for the index with
// the tag that clients keep instead (distribution-spec, "Referrers Tag Schema").
func (r *registry) attached(ctx context.Context, d digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	list, err := r.listed(ctx, "/referrers/"+d.String()+"?"+url.Values{"artifactType": {artifactType}}.Encode(), artifactType)
	if lacksReferrers(err) {
		list, err = r.listed(ctx, "/manifests/"+d.Algorithm().String()+"-"+d.Encoded(), artifactType)
		if lacksReferrers(err) {
			return nil, nil
		}
	}
	return list, err
}

// listed reads the pages of a list that begins at path, of one host.
func (r *registry) listed(ctx context.Context, path, artifactType string) (list []v1.Descriptor, err error) {
	err = r.each(ctx, func(h *host) bool { return h.pull }, func(h *host) error {
		list = nil
		for page, path := 0, path; path != "" && page < maxPages; page++ {
			data, header, err := r.document(ctx, h, path)
			if err != nil {
				return err
			}
			more, err := parseSent(data, header.Get("Content-Type"))
			if err != nil {
				return fmt.Errorf("%s: %w", h.api.Host, err)
			}
			list = append(list, ofType(more, artifactType)...)
			path = r.nextPage(h, path, header)
		}
		if len(list) == 0 && h.isMirror() {
			return errEmpty
		}
		return nil
	})
	return list, err
}

// nextPage is where a list goes on (RFC 8288) of which path was a page, if it is in the repository at the same
// host: nobody else is asked. Empty: it ends there.
func (r *registry) nextPage(h *host, path string, header http.Header) string {
	for _, link := range header.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
		if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
			continue
		}
		root := h.url("/" + r.ref.repository)
		u, err := h.url("/" + r.ref.repository + path).Parse(target)
		if err != nil || u.Host != root.Host {
			return ""
		}
		next, ok := strings.CutPrefix(u.Path, root.Path+"/")
		if !ok {
			return ""
		}
		query := u.Query()
		query.Del("ns") // which the host adds
		return "/" + next + "?" + query.Encode()
	}
	return ""
}

// lacksReferrers tells whether err is the answer of a registry that has not, or
// knows not what was asked for: such a one may as well send a page for people.
func lacksReferrers(err error) bool {
	if errors.Is(err, source.ErrNotFound) || errors.Is(err, errNoList) {
		return true
	}
	var status *ranged.StatusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.Status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusNotImplemented:
		return true
	}
	return false
}

var errNoList = fmt.Errorf("%w: what was sent is no image index", source.ErrNotBytes)

// parseSent is parseList of what was sent as something of kind.
func parseSent(data []byte, kind string) ([]v1.Descriptor, error) {
	if sent, _, err := mime.ParseMediaType(kind); err != nil || sent != v1.MediaTypeImageIndex {
		return nil, fmt.Errorf("%w, but %.60q", errNoList, kind)
	}
	return parseList(data)
}

// parseList reads an image index.
func parseList(data []byte) ([]v1.Descriptor, error) {
	var index v1.Index
	err := json.Unmarshal(data, &index)
	if err != nil || index.Manifests == nil && index.MediaType != v1.MediaTypeImageIndex {
		return nil, errNoList
	}
	return index.Manifests, nil
}

// ofType are those of list that are manifests of the type.
func ofType(list []v1.Descriptor, artifactType string) []v1.Descriptor {
	return slices.DeleteFunc(list, func(d v1.Descriptor) bool {
		return d.ArtifactType != artifactType || checkDescriptor(d) != nil || d.Size > jsonLimit
	})
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
func (l *layout) attached(_ context.Context, d digest.Digest, artifactType string) ([]v1.Descriptor, error) {
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
	return ofType(found, artifactType), nil
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
