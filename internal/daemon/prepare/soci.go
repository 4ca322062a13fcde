package prepare

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// Ztoc names the zTOC of a layer.
type Ztoc struct {
	// Version of the index that lists it: 1 was found by asking what refers to the
	// image, 2 is what the image itself says.
	Version int           `json:"version"`
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	// Read is the SHA-256 of what a plan has read of it, as spansSum has it: another's
	// may differ until all of the zTOC has its digest.
	Read string `json:"read"`
}

// Indices are where an image's zTOCs come from.
type Indices struct {
	// Find is the zTOC of a layer, nil where it has none: of the version, or the best
	// where that is 0.
	Find func(ctx context.Context, l oci.Layer, version int) (*Ztoc, error)
	// Open opens it.
	Open func(ctx context.Context, z Ztoc) (source.Blob, error)
}

// format of layers with a zTOC.
func (z *Ztoc) format() Format {
	if z.Version == 2 {
		return SOCI2
	}
	return SOCI1
}

// sociLayer is a layer that is read by its zTOC, of which read was read. Until all of
// that is there it is the registry's word what it says, so nobody else's bytes may be
// taken for these: not those of the same registry when it says something else either.
func sociLayer(img *oci.Image, l oci.Layer, z *Ztoc, read string) Layer {
	layer := unverifiedLayer(img, l, z.format(), z.Digest.String()+" "+read)
	layer.Ztoc = &Ztoc{Version: z.Version, Digest: z.Digest, Size: z.Size, Read: read}
	return layer
}

// spansSum is what s is known by.
func spansSum(s *soci.Spans) (string, error) {
	sum, err := s.Sum()
	return hex.EncodeToString(sum[:]), err
}

// readSOCI reads a layer's table of contents from its zTOC: nil where it has none that
// can be used, and why. An index is help: whatever keeps it from being had, a layer is
// had without it, unless it was wished for.
func (l *Library) readSOCI(ctx context.Context, j *Job, n int, blob source.Blob) (p *prepared, why string, err error) {
	from := j.Image.Layers[n]
	if source.IsSequential(blob) {
		return nil, "", nil
	}
	z, err := j.zTOC(ctx, from)
	if err == nil && z == nil {
		return nil, "", nil
	}
	as := "looking for an index"
	if err == nil {
		as = "as " + string(z.format())
		p, err = l.readZtoc(ctx, j, n, z)
	}
	unusable := errors.Is(err, toc.ErrNotFormat) || errors.Is(err, toc.ErrInvalid) || errors.Is(err, toc.ErrLimit)
	switch {
	case err == nil:
		return p, "", nil
	case ctx.Err() != nil || !unusable && j.Asked.Format.isSOCI():
		return nil, "", err
	}
	return nil, shortened(as + ": " + err.Error()), nil
}

// maxWhy bounds a reason, in characters: it is kept in a line of maxTOCHead, quoted.
const maxWhy = 300

// shortened is text without its end if it is too long.
func shortened(text string) string {
	if all := []rune(text); len(all) > maxWhy {
		return string(all[:maxWhy]) + "..."
	}
	return text
}

// smallZtoc is what a zTOC may have of bytes whatever its layer has.
const smallZtoc = 16 << 20

// checkSpans refuses a zTOC whose spans may be larger than what is decoded: a single
// large block shows only when all of it is there.
func checkSpans(s *soci.Spans) error {
	each := s.Uncompressed / int64(s.Count())
	if s.Count() > 1 {
		each = max(each, s.SpanSize)
	}
	if each+min(each, s.BlobSize) > spans.MaxSpan {
		return fmt.Errorf("spans of %d bytes: %w: %w", each, spans.ErrSpan, toc.ErrLimit)
	}
	return nil
}

func (l *Library) readZtoc(ctx context.Context, j *Job, n int, z *Ztoc) (p *prepared, err error) {
	from := j.Image.Layers[n]
	// All of it is fetched: what is larger than the layer is no help, and takes the disk.
	if z.Size > max(from.Size, smallZtoc) {
		return nil, fmt.Errorf("zTOC %s of %d bytes for a layer of %d: %w", z.Digest, z.Size, from.Size, toc.ErrLimit)
	}
	blob, err := j.Indices.Open(ctx, *z)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if blob.Size() != z.Size {
		return nil, fmt.Errorf("zTOC %s has %d bytes, the index says %d: %w", z.Digest, blob.Size(), z.Size, toc.ErrInvalid)
	}
	read, err := soci.Open(ctx, blob, from.Size)
	if err != nil {
		return nil, err
	}
	if read.Spans.Codec != toc.Gzip {
		return nil, fmt.Errorf("zTOC of a layer that is %s: %w", read.Spans.Codec, toc.ErrNotFormat)
	}
	if err := checkSpans(read.Spans); err != nil {
		return nil, err
	}
	t, headers, err := read.Contents()
	if err != nil {
		return nil, err
	}
	s := read.Spans.With(headers)
	sum, err := spansSum(s)
	if err != nil {
		return nil, err
	}
	p = &prepared{Layer: sociLayer(j.Image, from, z, sum), toc: t}
	p.Size = t.DeviceSize()
	j.keeping.Go(func() error {
		// Where a crash leaves a table of contents, the spans are there.
		if err := replace(l.spansPath(p.Device), s.Encode); err != nil {
			return err
		}
		return l.saveTOC(*p)
	})
	return p, nil
}

// What is kept of a zTOC beside the table of contents: what Spans encodes, and once
// all of it was read, the zTOC.
const (
	spansSuffix = ".spans"
	ztocSuffix  = ".ztoc"
)

func (l *Library) spansPath(id ondemand.ObjectID) string {
	return filepath.Join(l.dir, "layers", string(id)+spansSuffix)
}

func (l *Library) ztocPath(id ondemand.ObjectID) string {
	return filepath.Join(l.dir, "layers", string(id)+ztocSuffix)
}

// loadSpans reads what was kept of a layer's zTOC; ErrDamaged where it is not what
// belongs to its table of contents.
func (l *Library) loadSpans(layer Layer) (s *soci.Spans, err error) {
	id := layer.Device
	f, err := openFile(l.spansPath(id))
	if err != nil {
		return nil, fmt.Errorf("read the spans of %s: %w", id.Short(), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if s, err = soci.DecodeSpans(f); errors.Is(err, toc.ErrInvalid) {
		err = fmt.Errorf("read the spans of %s: %w: %w", id.Short(), ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	if sum, err := spansSum(s); err != nil || sum != layer.Ztoc.Read {
		return nil, errors.Join(fmt.Errorf("read the spans of %s: they are others: %w", id.Short(), ErrDamaged), err)
	}
	return s, nil
}

// decoded is the device of a layer with a zTOC. It owns blob.
func (l *Library) decoded(layer Layer, t *toc.TOC, blob source.Blob, ztoc func() (source.Blob, error)) (source.Blob, *index, error) {
	s, err := l.loadSpans(layer)
	if err != nil {
		return nil, nil, errors.Join(err, blob.Close())
	}
	remote, err := ztoc()
	if err != nil {
		return nil, nil, errors.Join(err, blob.Close())
	}
	x := &index{id: layer.Device, library: l, digest: layer.Ztoc.Digest, remote: remote, turn: make(chan struct{}, 1)}
	if x.Reader, err = soci.NewReader(s, ztocBlob{x}); err != nil {
		return nil, nil, errors.Join(err, blob.Close(), remote.Close())
	}
	decoded := spans.New(blob, x, l.spans)
	headers := s.Headers
	if headers == nil {
		headers = new(soci.Headers)
	}
	d, err := device.NewDecoded(decoded, t, headers)
	if err != nil {
		return nil, nil, errors.Join(err, decoded.Close())
	}
	return d, x, nil
}
