package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
)

// Whole is all that a reference names: one image, or an index with those of several
// platforms.
type Whole struct {
	// Ref is the reference in full, Place what Image.Place says.
	Ref, Place string
	// Index is what the reference names; of a single image, one that lists it.
	Index v1.Index
	// Root is the index or the manifest as it is, and RootType its media type. An
	// archive has none: it is the manifest that its image would have.
	Root     []byte
	RootType string
	// Images are those that were asked for: of one platform, or of all.
	Images []*Image
	// Entries of the index are those of Images, each with a platform.
	Entries []v1.Descriptor

	from content // nil: of an archive
	all  blobs
}

// OpenWhole is Open for all platforms at once, where opts name none.
func OpenWhole(ctx context.Context, ref string, opts Options) (*Whole, error) {
	r, err := parseReference(ref, exists)
	if err != nil {
		return nil, fmt.Errorf("open image %q: %w", ref, err)
	}
	w, err := openWhole(ctx, r, opts.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", r, err)
	}
	return w, nil
}

func openWhole(ctx context.Context, r reference, opts Options) (*Whole, error) {
	p, err := parsePlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	if r.archive {
		return wholeArchive(ctx, r, opts)
	}
	c, err := newContent(r, opts)
	if err != nil {
		return nil, err
	}
	w := &Whole{Ref: r.String(), Place: r.place(), from: c, all: c}
	if err := w.load(ctx, p, opts.Platform != ""); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return w, nil
}

func (w *Whole) load(ctx context.Context, p platform, asked bool) error {
	data, d, kind, err := w.from.resolve(ctx)
	if err != nil {
		return err
	}
	doc, isIndex, err := parseDocument(data, kind)
	if err != nil {
		return err
	}
	w.Root, w.RootType = data, doc.MediaType
	if !isIndex {
		if w.RootType == "" {
			w.RootType = v1.MediaTypeImageManifest
		}
		entry := v1.Descriptor{MediaType: w.RootType, Digest: d, Size: int64(len(data))}
		w.Index = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{entry}}
		return w.add(ctx, 0, doc, "", p, asked)
	}
	if w.RootType == "" {
		w.RootType = v1.MediaTypeImageIndex
	}
	if err := json.Unmarshal(data, &w.Index); err != nil {
		return fmt.Errorf("%w: the index is not JSON", source.ErrNotBytes)
	}
	only := nameless(w.Index.Manifests)
	for i, entry := range w.Index.Manifests {
		q := platformOf(entry.Platform)
		if i != only && (!mayBeImage(entry) || q.os == "") {
			continue
		}
		if asked && i != only && p.runs(q) == 0 {
			continue
		}
		data, err := w.Manifest(ctx, entry)
		if err != nil {
			return err
		}
		doc, isIndex, err := parseDocument(data, entry.MediaType)
		if err != nil {
			return err
		}
		if isIndex {
			return fmt.Errorf("%w: indices in each other", ErrUnsupported)
		}
		if err := w.add(ctx, i, doc, d, p, asked); err != nil {
			return err
		}
	}
	if len(w.Images) > 0 && !asked {
		return nil
	}
	best, err := choose(w.Index.Manifests, p)
	if len(w.Images) == 0 {
		return errors.Join(err, fmt.Errorf("%w in the index", ErrNoPlatform))
	}
	if err != nil {
		return err
	}
	// Machines of one variant run images of lower ones: the best one is meant.
	n := max(0, slices.IndexFunc(w.Entries, func(e v1.Descriptor) bool { return e.Digest == best.Digest }))
	w.Images, w.Entries = w.Images[n:n+1], w.Entries[n:n+1]
	return nil
}

// add adds the image of entry i, whose manifest is doc.
func (w *Whole) add(ctx context.Context, i int, doc document, index digest.Digest, p platform, asked bool) error {
	entry := &w.Index.Manifests[i]
	img := &Image{Ref: w.Ref, IndexDigest: index, blobs: w.all, place: w.Place}
	is, err := img.read(ctx, w.from, doc, entry.Digest)
	if err != nil {
		return err
	}
	if asked && is.os != "" && p.runs(is) == 0 {
		return fmt.Errorf("%w for %s; there is %s", ErrNoPlatform, p, is)
	}
	w.adopt(img, entry)
	return nil
}

// adopt adds img, which is that of entry.
func (w *Whole) adopt(img *Image, entry *v1.Descriptor) {
	if entry.Platform == nil {
		var config v1.Image
		if json.Unmarshal(img.Config, &config) == nil && config.OS != "" {
			entry.Platform = &config.Platform
		}
	}
	img.adopt()
	w.Images, w.Entries = append(w.Images, img), append(w.Entries, *entry)
}

// wholeArchive makes the manifest that docker save leaves out.
func wholeArchive(ctx context.Context, r reference, opts Options) (*Whole, error) {
	img, err := openArchive(ctx, r, opts)
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: img.Digest, Size: int64(len(img.Config))},
	}
	for _, l := range img.Layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, errors.Join(err, img.Close())
	}
	w := &Whole{Ref: img.Ref, Place: img.place, Root: data, RootType: v1.MediaTypeImageManifest, all: img.blobs}
	entry := v1.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	img.Digest = entry.Digest
	w.adopt(img, &entry)
	w.Index = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{entry}}
	return w, nil
}

// Manifest returns the manifest that an entry of the index names, verified.
func (w *Whole) Manifest(ctx context.Context, entry v1.Descriptor) ([]byte, error) {
	if entry.Digest == digest.FromBytes(w.Root) {
		return w.Root, nil
	}
	if w.from == nil {
		return nil, fmt.Errorf("read manifest %s of %s: %w", short(entry.Digest), w.Ref, source.ErrNotFound)
	}
	if entry.Size > jsonLimit {
		return nil, fmt.Errorf("%w: manifest %s has %d bytes", ErrUnsupported, short(entry.Digest), entry.Size)
	}
	return w.from.manifest(ctx, entry)
}

// Blob opens a blob that a manifest names, be it a layer or not. What it reads is for
// the reader to verify.
func (w *Whole) Blob(ctx context.Context, d v1.Descriptor) (source.Blob, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	for _, img := range w.Images {
		if digest.FromBytes(img.Config) == d.Digest { // which an archive has not as a blob
			return held{data: img.Config}, nil
		}
	}
	b, err := w.all.blob(ctx, Layer{Digest: d.Digest, Size: d.Size, image: w.Images[0]})
	if err != nil {
		return nil, fmt.Errorf("open blob %s of %s: %w", short(d.Digest), w.Ref, err)
	}
	return b, nil
}

// Close is Image.Close for all images.
func (w *Whole) Close() error { return w.all.close() }

// held is a blob in memory.
type held struct{ data []byte }

func (h held) Size() int64 { return int64(len(h.data)) }

func (h held) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(h, off, n); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(h.data[off : off+n])), nil
}

func (held) Close() error { return nil }
