// Package oci is the source of images: of their manifests, configurations and
// layers in a registry, in an OCI layout or in an archive of docker save.
//
// A tag is resolved once; from then on everything is asked for by digest.
// Indices, manifests and configurations are verified here. Layers are read by
// range, so their bytes are for the reader to verify, with the digests of chunks
// or of the whole; of a range, only its place and the layer's size are checked.
//
// Registries are asked in the order of containerd's hosts.toml (package hosts),
// the next one where one fails; one that failed comes last for a while. A 401
// or 403 renews the login (package auth). Where a registry redirects to a signed
// URL, that is remembered for each layer and asked for anew when it expires
// (package ranged). No second try is made beyond these; package retry does that.
//
// Of go-containerregistry the package takes the grammar of references. Its
// client is not used, because it has neither ranges nor several hosts, and its
// login is explained in package auth.
package oci

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
)

// dockerHub is the registry of references that name none, and dockerHubAPI the host of its API.
const (
	dockerHub    = "docker.io"
	dockerHubAPI = "registry-1.docker.io"
)

// Image is one image for one platform. What it says never changes.
type Image struct {
	// Ref is the reference in full, with the tag that was asked for.
	Ref string
	// Digest is the manifest's; of a docker-archive, which has no manifest,
	// the configuration's.
	Digest digest.Digest
	// IndexDigest is that of the index that Ref names; empty: it names the manifest.
	IndexDigest digest.Digest
	// Platform is os/arch or os/arch/variant, from the configuration.
	Platform string
	// Config is the configuration as it is.
	Config []byte
	// Layers are in their order, the lowest first.
	Layers []Layer

	blobs    blobs
	place    string
	manifest []byte // nil: not kept
}

// Layer is one layer of an image.
type Layer struct {
	Digest      digest.Digest // of the blob, compressed as it is
	Size        int64         // of the blob, bytes
	MediaType   string
	Annotations map[string]string
	DiffID      digest.Digest // of the tar in it

	image *Image
}

// content is where an image's parts lie.
type content interface {
	documents
	blobs
}

// documents are what is read as a whole, and verified.
type documents interface {
	// resolve returns the index or manifest that the reference names, its
	// digest and its media type, which may be empty.
	resolve(ctx context.Context) (data []byte, d digest.Digest, kind string, err error)
	// manifest returns the index or manifest d.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// config returns the configuration d.
	config(ctx context.Context, d v1.Descriptor) ([]byte, error)
}

// blobs are the layers.
type blobs interface {
	// blob returns the bytes of l by range.
	blob(ctx context.Context, l Layer) (source.Blob, error)
	// close ends what is in progress and frees what is held. Blobs fail from then on.
	close() error
}

// Open finds the image that ref names:
//
//	registry.example/repository:tag, @sha256:... and docker's short names
//	oci-layout:DIRECTORY, with :TAG or @sha256:...
//	docker-archive:FILE, with :NAME:TAG
func Open(ctx context.Context, ref string, opts Options) (*Image, error) {
	r, err := parseReference(ref, exists)
	if err != nil {
		return nil, fmt.Errorf("open image %q: %w", ref, err)
	}
	img, err := open(ctx, r, opts)
	if errors.Is(err, source.ErrNotFound) && r.assumed(ref) {
		return nil, fmt.Errorf("open image %s (no tag is given, and latest is taken): %w", r, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", r, err)
	}
	return img, nil
}

func open(ctx context.Context, r reference, opts Options) (*Image, error) {
	opts = opts.withDefaults()
	p, err := parsePlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	if r.archive {
		return openArchive(ctx, r, opts)
	}
	c, err := newContent(r, opts)
	if err != nil {
		return nil, err
	}
	img := &Image{Ref: r.String(), blobs: c, place: r.place()}
	if err := img.load(ctx, c, p, opts.Platform != ""); err != nil {
		return nil, errors.Join(err, c.close())
	}
	img.adopt()
	return img, nil
}

// newContent makes no request.
func newContent(r reference, opts Options) (content, error) {
	if r.registry == "" {
		return newLayout(r, opts)
	}
	return newRegistry(r, opts)
}

// Reopen returns the image saved, of which the exported fields are kept,
// without any request to a registry, so that it works where there is none: only
// reading missing ranges needs it.
func Reopen(ctx context.Context, saved Image, opts Options) (*Image, error) {
	r, err := parseReference(saved.Ref, exists)
	if err != nil {
		return nil, fmt.Errorf("open image %q: %w", saved.Ref, err)
	}
	if r.archive {
		img, err := Open(ctx, saved.Ref, opts)
		if err == nil && img.Digest != saved.Digest {
			return nil, fmt.Errorf("open image %s: %w", r, errors.Join(source.ErrChanged, img.Close()))
		}
		return img, err
	}
	c, err := newContent(r, opts.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", r, err)
	}
	if reg, ok := c.(*registry); ok {
		reg.ranges.assume(opts.Sequential)
	}
	img := saved
	img.Layers = append([]Layer(nil), saved.Layers...)
	img.blobs, img.place = c, r.place()
	img.adopt()
	return &img, nil
}

func (i *Image) adopt() {
	for n := range i.Layers {
		i.Layers[n].image = i
	}
}

// maxNesting is how many indices may lie in each other.
const maxNesting = 3

// load resolves the reference and reads down to the configuration. Where the
// platform was asked for by name, a single image must be for it too.
func (i *Image) load(ctx context.Context, from documents, p platform, asked bool) error {
	data, d, kind, err := from.resolve(ctx)
	if err != nil {
		return err
	}
	doc, isIndex, err := parseDocument(data, kind)
	if err != nil {
		return err
	}
	if isIndex {
		i.IndexDigest = d
	}
	for n := 0; isIndex; n++ {
		if n == maxNesting {
			return fmt.Errorf("%w: more than %d indices in each other", ErrUnsupported, maxNesting)
		}
		entry, err := choose(doc.Manifests, p)
		if err != nil {
			return err
		}
		if entry.Size > jsonLimit {
			return fmt.Errorf("%w: manifest %s has %d bytes", ErrUnsupported, short(entry.Digest), entry.Size)
		}
		if data, err = from.manifest(ctx, entry); err != nil {
			return err
		}
		d = entry.Digest
		if doc, isIndex, err = parseDocument(data, entry.MediaType); err != nil {
			return err
		}
	}
	i.manifest = data
	is, err := i.read(ctx, from, doc, d)
	if err != nil {
		return err
	}
	if asked && is.os != "" && p.runs(is) == 0 {
		return fmt.Errorf("%w for %s; there is %s", ErrNoPlatform, p, is)
	}
	return nil
}

// read makes it the image of a manifest, which has the digest d.
func (i *Image) read(ctx context.Context, from documents, doc document, d digest.Digest) (is platform, err error) {
	i.Digest = d
	if doc.Config.Size > jsonLimit {
		return is, fmt.Errorf("%w: the configuration has %d bytes", ErrUnsupported, doc.Config.Size)
	}
	if i.Config, err = from.config(ctx, *doc.Config); err != nil {
		return is, err
	}
	if i.Layers, is, err = layersOf(doc, i.Config); err != nil {
		return is, err
	}
	i.Platform = is.String()
	return is, nil
}

// Place is where the image lies: its registry and repository, or its path.
func (i *Image) Place() string { return i.place }

// AssumeRanges says, as it was learnt before, whether blobs are sequential because
// the registry has no range requests: Blob need not ask then.
func (i *Image) AssumeRanges(sequential bool) {
	if r, ok := i.blobs.(*registry); ok {
		r.ranges.assume(sequential)
	}
}

// Close ends reads of the image's layers and frees what it holds. Blobs of its
// layers fail from then on.
func (i *Image) Close() error { return i.blobs.close() }

// Blob returns the layer's bytes by range. The first one of an image asks
// whether the registry has ranges; where it has not, blobs are sequential.
func (l Layer) Blob(ctx context.Context) (source.Blob, error) {
	b, err := l.image.blobs.blob(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("open layer %s of %s: %w", short(l.Digest), l.image.Ref, err)
	}
	return b, nil
}
