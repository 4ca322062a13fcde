package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// Indices are the SOCI indices of an image, the best first: of a version, or where that is
// 0 the one that the image names, and where it names none those that refer to it. What is
// none, or of another image, is left out.
func Indices(ctx context.Context, img *oci.Image, version int) (list []*soci.Index, err error) {
	manifest, err := img.Manifest(ctx, img.Digest)
	if errors.Is(err, source.ErrNotFound) {
		return nil, nil // an archive
	}
	if err != nil {
		return nil, err
	}
	if named, err := soci.IndexDigest(manifest); err == nil && named != "" && version != 1 {
		if list, err = addIndex(ctx, img, list, named, 2); err != nil {
			return nil, err
		}
	}
	if version == 2 || len(list) > 0 {
		return list, nil
	}
	refer, err := img.Referrers(ctx, soci.ArtifactV1)
	if err != nil {
		return nil, err
	}
	for _, d := range refer {
		if list, err = addIndex(ctx, img, list, d.Digest, 1); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// addIndex reads an index manifest that the registry should have.
func addIndex(ctx context.Context, img *oci.Image, list []*soci.Index, d digest.Digest, version int) ([]*soci.Index, error) {
	data, err := img.Manifest(ctx, d)
	if errors.Is(err, source.ErrNotFound) {
		return list, nil
	}
	if err != nil {
		return nil, err
	}
	x, err := soci.ParseIndex(data)
	if err != nil || x.Version != version || version == 1 && x.Subject.Digest != img.Digest {
		return list, nil
	}
	return append(list, x), nil
}

// ErrNoIndex: an image has no SOCI index.
var ErrNoIndex = errors.New("no SOCI index")

// Opened is an image with the zTOCs of its best index, all of them verified.
type Opened struct {
	Index *soci.Index
	// Layers are all of the image, in their order.
	Layers []OpenedLayer

	image *oci.Image
}

// OpenedLayer is a layer with its zTOC.
type OpenedLayer struct {
	oci.Layer
	// Ztoc is nil where the layer has none; Info is what the index says of it.
	Ztoc *soci.Ztoc
	Info soci.LayerZtoc

	reader *soci.Reader
}

// OpenIndex reads the zTOCs of an image whole.
func OpenIndex(ctx context.Context, img *oci.Image) (*Opened, error) {
	list, err := Indices(ctx, img, 0)
	if err == nil && len(list) == 0 {
		err = ErrNoIndex
	}
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", img.Ref, err)
	}
	o := &Opened{Index: list[0], Layers: make([]OpenedLayer, len(img.Layers)), image: img}
	for n, l := range img.Layers {
		to := &o.Layers[n]
		to.Layer = l
		info, ok := o.Index.Find(l.Digest)
		if !ok {
			continue
		}
		if err := to.open(ctx, img, info); err != nil {
			return nil, fmt.Errorf("read zTOC %s of %s: %w", info.Ztoc, img.Ref, err)
		}
	}
	return o, nil
}

// maxZtoc bounds what is read of a zTOC into memory: 4 GiB of spans' windows are more
// than layers of registries need.
const maxZtoc = soci.MaxMetadata + 1<<30

func (l *OpenedLayer) open(ctx context.Context, img *oci.Image, info soci.LayerZtoc) (err error) {
	if info.Size > maxZtoc {
		return fmt.Errorf("%d bytes: %w", info.Size, toc.ErrLimit)
	}
	blob, err := img.Attached(ctx, info.Ztoc, info.Size)
	if err != nil {
		return err
	}
	blob = retry.Wrap(blob, retry.Policy{})
	defer func() { err = errors.Join(err, blob.Close()) }()
	body, err := blob.ReadRange(ctx, 0, info.Size)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return err
	}
	if digest.FromBytes(data) != info.Ztoc {
		return fmt.Errorf("it has other bytes: %w", toc.ErrDigest)
	}
	l.Info = info
	l.Ztoc, l.reader, err = openZtoc(ctx, data, l.Size)
	return err
}

func openZtoc(ctx context.Context, data []byte, layer int64) (*soci.Ztoc, *soci.Reader, error) {
	blob := mem.New(data)
	z, err := soci.Open(ctx, blob, layer)
	if err != nil {
		return nil, nil, err
	}
	r, err := soci.NewReader(z.Spans, blob)
	return z, r, err
}

// Find is the layer and the entry of the file with the name, in the layer highest up
// that has it. A whiteout above hides it: source.ErrNotFound.
func (o *Opened) Find(name string) (*OpenedLayer, *soci.File, error) {
	want := clean(name)
	unknown := 0
	for n := len(o.Layers) - 1; n >= 0; n-- {
		l := &o.Layers[n]
		if l.Ztoc == nil {
			unknown++
			continue
		}
		for i := len(l.Ztoc.Files) - 1; i >= 0; i-- {
			if f := &l.Ztoc.Files[i]; clean(f.Name) == want {
				return l, f, nil
			}
		}
		if l.hides(want) {
			return nil, nil, fmt.Errorf("find %s in %s: %w: layer %.19s deletes it", name, o.image.Ref, source.ErrNotFound, l.Digest)
		}
	}
	err := fmt.Errorf("find %s in %s: %w", name, o.image.Ref, source.ErrNotFound)
	if unknown > 0 {
		err = fmt.Errorf("%w: it may be in one of the %d layers without a zTOC", err, unknown)
	}
	return nil, nil, err
}

// hides tells whether the layer has a whiteout of the name, or of a directory above
// (image-spec, layer.md, "Whiteouts").
func (l *OpenedLayer) hides(name string) bool {
	marks := make(map[string]bool)
	for at := name; at != "."; at = path.Dir(at) {
		marks[path.Join(path.Dir(at), ".wh."+path.Base(at))] = true
		marks[path.Join(path.Dir(at), ".wh..wh..opq")] = true
	}
	for i := range l.Ztoc.Files {
		if marks[clean(l.Ztoc.Files[i].Name)] {
			return true
		}
	}
	return false
}

func clean(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }

// maxLinks bounds the hard links that lead to a file.
const maxLinks = 10

// Cat writes the bytes of a file: of the layer, only the spans that hold them are read.
func (o *Opened) Cat(ctx context.Context, out io.Writer, name string) error {
	l, f, err := o.Find(name)
	for n := 0; err == nil && f.Type == "hardlink"; n++ {
		if n == maxLinks {
			return fmt.Errorf("read %s of %s: too many links", name, o.image.Ref)
		}
		l, f, err = o.Find(f.Link)
	}
	if err != nil {
		return err
	}
	if f.Type != "reg" {
		return fmt.Errorf("read %s of %s: %w: it is a %s", name, o.image.Ref, ErrNoFile, f.Type)
	}
	if err := l.cat(ctx, out, f); err != nil {
		return fmt.Errorf("read %s of %s: %w", name, o.image.Ref, err)
	}
	return nil
}

// ErrNoFile: a name is that of something without data.
var ErrNoFile = errors.New("not a regular file")

func (l *OpenedLayer) cat(ctx context.Context, out io.Writer, f *soci.File) (err error) {
	t, err := l.Ztoc.TOC() // which says whether files lie where they can
	if err != nil || t == nil || f.Size == 0 {
		return err
	}
	blob, err := l.Blob(ctx)
	if err != nil {
		return err
	}
	blob = retry.Wrap(blob, retry.Policy{})
	if l.Ztoc.Spans.Codec == toc.Gzip {
		blob = spans.New(blob, spanIndex{l.reader}, spans.NewGate())
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if err := l.checkHeader(ctx, blob, f); err != nil {
		return err
	}
	body, err := blob.ReadRange(ctx, f.Off, f.Size)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, body)
	return errors.Join(err, body.Close())
}

// checkHeader compares what lies before the file's data with its name and size.
func (l *OpenedLayer) checkHeader(ctx context.Context, blob source.Blob, f *soci.File) error {
	off, n, err := l.Ztoc.Header(f)
	if err != nil {
		return err
	}
	body, err := blob.ReadRange(ctx, off, n)
	if err != nil {
		return err
	}
	header := make([]byte, n)
	_, err = io.ReadFull(body, header)
	if err := errors.Join(err, body.Close()); err != nil {
		return err
	}
	return f.CheckHeader(header)
}

// spanIndex is a zTOC as spans.Index.
type spanIndex struct{ *soci.Reader }

func (x spanIndex) Size() int64  { return x.Spans().Uncompressed }
func (x spanIndex) Close() error { return nil }

func (x spanIndex) Known(off int64) (from, end int64, known bool) { return x.Place(off) }

func (x spanIndex) Find(ctx context.Context, off int64) (spans.Span, error) {
	found, err := x.Covering(ctx, off, off+1)
	if err != nil {
		return spans.Span{}, err
	}
	s := &found[0]
	return spans.Span{From: s.Checkpoint, End: min(s.End, x.Size()), InEnd: s.BlobOff + s.BlobLen, Digest: s.Digest}, nil
}
