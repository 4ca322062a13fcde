package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
)

// layout is an image in a directory (image-spec, image-layout.md).
type layout struct {
	ref  reference
	opts Options
	life context.Context // ends at close
	end  context.CancelFunc
}

// newLayout does not look at the directory.
func newLayout(ref reference, opts Options) (*layout, error) {
	if opts.OpenFile == nil {
		return nil, errNoOpenFile
	}
	l := &layout{ref: ref, opts: opts}
	l.life, l.end = context.WithCancel(context.Background())
	return l, nil
}

func (l *layout) close() error {
	l.end()
	return nil
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.ref.path, "blobs", d.Algorithm().String(), d.Encoded())
}

func (l *layout) resolve(context.Context) (data []byte, d digest.Digest, kind string, err error) {
	if err := l.checkVersion(); err != nil {
		return nil, "", "", err
	}
	if l.ref.digest != "" {
		if data, err = readDocument(l.path(l.ref.digest)); err == nil {
			err = verifyDigest(data, l.ref.digest)
		}
		return data, l.ref.digest, "", err
	}
	index, err := readDocument(filepath.Join(l.ref.path, v1.ImageIndexFile))
	if err != nil {
		return nil, "", "", err
	}
	doc, isIndex, err := parseDocument(index, v1.MediaTypeImageIndex)
	if err != nil || !isIndex {
		return nil, "", "", errors.Join(err, fmt.Errorf("%s of the layout", v1.ImageIndexFile))
	}
	found, err := l.pick(doc.Manifests)
	if err != nil {
		return nil, "", "", err
	}
	if found == nil { // several platforms of one image, without an index of their own
		return index, digest.FromBytes(index), v1.MediaTypeImageIndex, nil
	}
	data, err = l.document(*found)
	return data, found.Digest, found.MediaType, err
}

func (l *layout) checkVersion() error {
	data, err := readDocument(filepath.Join(l.ref.path, v1.ImageLayoutFile))
	if err != nil {
		return err
	}
	var version v1.ImageLayout
	if json.Unmarshal(data, &version) != nil || version.Version != v1.ImageLayoutVersion {
		return fmt.Errorf("%w: not an OCI layout of version %s", ErrUnsupported, v1.ImageLayoutVersion)
	}
	return nil
}

// pick chooses the entry of index.json that has the tag. Without a tag the only image is
// meant, which what refers to it may lie beside; nil: any of them, by platform.
func (l *layout) pick(all []v1.Descriptor) (*v1.Descriptor, error) {
	var names []string
	var entries []v1.Descriptor
	platforms := true
	for i, e := range all {
		name := e.Annotations[v1.AnnotationRefName]
		if l.ref.tag != "" && name == l.ref.tag {
			return &all[i], nil
		}
		if e.ArtifactType != "" && e.ArtifactType != v1.MediaTypeImageConfig {
			continue
		}
		entries = append(entries, e)
		if name != "" {
			names = append(names, name)
		}
		platforms = platforms && e.Platform != nil
	}
	slices.Sort(names)
	there := strings.Join(names, ", ")
	switch {
	case l.ref.tag != "":
		return nil, fmt.Errorf("%w: no tag %q in the layout; there are: %s", source.ErrNotFound, l.ref.tag, there)
	case len(entries) == 0:
		return nil, fmt.Errorf("%w: the layout is empty", source.ErrNotFound)
	case len(entries) == 1:
		return &entries[0], nil
	case platforms && len(slices.Compact(names)) <= 1:
		return nil, nil
	}
	return nil, fmt.Errorf("%w: the layout has %d images; tags are: %s", ErrSeveral, len(entries), there)
}

func (l *layout) document(d v1.Descriptor) ([]byte, error) {
	data, err := readDocument(l.path(d.Digest))
	if err != nil {
		return nil, err
	}
	return data, verify(data, d)
}

func (l *layout) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) { return l.document(d) }
func (l *layout) config(_ context.Context, d v1.Descriptor) ([]byte, error)   { return l.document(d) }

func (l *layout) blob(ctx context.Context, layer Layer) (source.Blob, error) {
	if l.life.Err() != nil {
		return nil, os.ErrClosed
	}
	file, err := l.opts.OpenFile(ctx, l.path(layer.Digest))
	if err != nil {
		return nil, err
	}
	if file.Size() != layer.Size {
		err := &wrongBytes{fmt.Sprintf("the file has %d bytes, the descriptor says %d", file.Size(), layer.Size)}
		return nil, errors.Join(err, file.Close())
	}
	return &section{Blob: file, place: l.ref.place(), life: l.life, size: layer.Size, digest: layer.Digest}, nil
}
