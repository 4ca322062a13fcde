package prepare

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/image"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/estargz"
	"github.com/lacunafs/lacuna/internal/toc/tarscan"
)

// layersAtOnce is how many layers are read or downloaded at the same time.
const layersAtOnce = 4

// Job prepares one image.
type Job struct {
	// Root holds the objects.
	Root *cache.Root
	// Image to prepare, and what was asked for it by.
	Image *oci.Image
	Asked Asked
	// Blob opens a layer, with retries and what else its requests should have.
	Blob func(ctx context.Context, l oci.Layer) (source.Blob, error)
	// Indices are where zTOCs come from; nowhere if it is zero.
	Indices Indices
	// Meta describes the object of a layer's device.
	Meta func(n int, l Layer) (cache.Meta, error)

	// keeping writes tables of contents that were read: nobody waits for the
	// disk before the plan, which says that they are there.
	keeping *errgroup.Group
	// before is the image's plan as it was made before, where that is known.
	before *Plan
	// ztocs are those of the layers, where only layers that have one are wished for.
	ztocs []*Ztoc
}

// prepared is a layer with its table of contents.
type prepared struct {
	Layer
	toc        *toc.TOC
	sequential bool // the blob that it was read from was
}

// Prepare returns the image's plan, and makes it first where there is none: it
// reads the layers' tables of contents, downloads layers that have none, and writes
// the filesystem image. What fails leaves objects that are complete, for the next try.
func (l *Library) Prepare(ctx context.Context, j Job) (*Plan, error) {
	if p, err := l.last(j.Asked); err == nil && p.isOf(j.Image) && p.fulfils(j.Asked.Format) {
		if l.complete(j.Root, p) {
			return p, nil
		}
		j.before = p
	}
	if err := l.listed(ctx, &j); err != nil {
		return nil, err
	}
	j.keeping = &errgroup.Group{}
	layers, err := l.layers(ctx, &j)
	if err := errors.Join(err, j.keeping.Wait()); err != nil {
		return nil, err
	}
	p, err := l.plan(ctx, &j, layers)
	if err != nil {
		return nil, err
	}
	return p, l.remember(j.Asked, p.Key)
}

// layers has every layer's table of contents, and its device where that has to be made.
func (l *Library) layers(ctx context.Context, j *Job) ([]prepared, error) {
	layers := make([]prepared, len(j.Image.Layers))
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(layersAtOnce)
	for n := range layers {
		tasks.Go(func() (err error) {
			if layers[n], err = l.layer(ctx, j, n); err != nil {
				return fmt.Errorf("layer %d of %d: %w", n+1, len(layers), err)
			}
			return nil
		})
	}
	return layers, tasks.Wait()
}

// plan finds the plan of the image with these layers, or writes it.
func (l *Library) plan(ctx context.Context, j *Job, layers []prepared) (*Plan, error) {
	key := keyOf(j.Image, layers)
	unlock, err := l.locks.lock(ctx, "image "+key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if p, err := l.Load(key); err == nil && l.complete(j.Root, p) {
		return p, nil
	}
	p, err := l.merge(j, key, layers)
	if err != nil {
		return nil, err
	}
	return p, replace(filepath.Join(filepath.Dir(p.Metadata), "plan.json"), func(w io.Writer) error { return seal(w, p) })
}

// isOf tells whether the plan is of that very image.
func (p *Plan) isOf(img *oci.Image) bool {
	return p.Image.Ref == img.Ref && p.Image.Digest == img.Digest && len(p.Layers) == len(img.Layers)
}

// complete tells whether a plan can be mounted as it is: its filesystem image and
// tables of contents are what was written, and layers that had to be downloaded are
// there.
func (l *Library) complete(root *cache.Root, p *Plan) bool {
	for _, layer := range p.Layers {
		if _, suspect := l.suspects.Load(layer.Device); suspect {
			return false
		}
		if layer.Format == Scanned && layer.Size > 0 && !exists(root, layer) {
			return false
		}
	}
	return l.check(p) == nil
}

// layer finds a layer's table of contents, in the cache first. One layer is prepared
// once at a time, whichever image it is of.
func (l *Library) layer(ctx context.Context, j *Job, n int) (prepared, error) {
	from := j.Image.Layers[n]
	unlock, err := l.locks.lock(ctx, "layer "+from.Digest.String())
	if err != nil {
		return prepared{}, err
	}
	defer unlock()
	if p, found := l.cached(j, n); found {
		return p, nil
	}
	blob, err := j.Blob(ctx, from)
	if err != nil {
		return prepared{}, err
	}
	// What turns out wrong at its end has been shown to nobody, and is had from another
	// host where there is one.
	ctx, refuted := source.WithRefuted(ctx)
	noted, p := &source.Noted{Wrapper: source.Wrapper{Blob: blob}}, prepared{}
	err = refuted.Until(func() (err error) {
		p, err = l.read(ctx, j, n, noted)
		return err
	}, func() (bool, error) { return noted.Refute(), nil })
	p.sequential = source.IsSequential(blob)
	return p, errors.Join(err, blob.Close())
}

// read reads a layer's table of contents from the blob.
func (l *Library) read(ctx context.Context, j *Job, n int, blob *source.Noted) (prepared, error) {
	ways := []func(context.Context, *Job, int, *source.Noted) (*prepared, string, error){l.readOwn, l.readIndexed}
	if !announced(j.Image.Layers[n].Annotations) {
		// To look for what the manifest does not announce takes a request for each layer,
		// and gives what nothing vouches for.
		slices.Reverse(ways)
	}
	why := ""
	for _, read := range ways {
		p, whyNot, err := read(ctx, j, n, blob)
		if err != nil {
			return prepared{}, err
		}
		if p != nil {
			return *p, nil
		}
		why = cmp.Or(why, whyNot)
	}
	if !j.allows(n, Scanned) {
		return prepared{}, l.refuse(ctx, j, false, why)
	}
	return l.download(ctx, j, n, blob, why)
}

// announced tells whether a manifest says that the layer has a table of contents of its own.
func announced(annotations map[string]string) bool {
	return slices.ContainsFunc(readers(), func(r reader) bool { return r.trust(annotations) != "" })
}

// readIndexed is readSOCI where that may be.
func (l *Library) readIndexed(ctx context.Context, j *Job, n int, blob *source.Noted) (*prepared, string, error) {
	if !j.allows(n, SOCI1) && !j.allows(n, SOCI2) {
		return nil, "", nil
	}
	return l.readSOCI(ctx, j, n, blob)
}

// readOwn is readTOC, whose failure where no request failed is that of wrong bytes.
func (l *Library) readOwn(ctx context.Context, j *Job, n int, blob *source.Noted) (*prepared, string, error) {
	p, why, err := l.readTOC(ctx, j, n, blob)
	if err != nil && !blob.Failed() {
		return nil, "", &source.WrongError{Err: err, Unsure: !errors.Is(err, toc.ErrDigest)}
	}
	return p, why, err
}

// readTOC reads a layer's own table of contents: nil where it has none that can be
// used, and why.
func (l *Library) readTOC(ctx context.Context, j *Job, n int, blob source.Blob) (p *prepared, why string, err error) {
	from := j.Image.Layers[n]
	layer := &toc.Layer{Blob: blob, Annotations: from.Annotations}
	for _, r := range readers() {
		if !j.allows(n, r.format) {
			continue
		}
		trust := r.trust(from.Annotations)
		if source.IsSequential(blob) {
			if trust != "" {
				why = "the registry has no ranges"
			}
			continue
		}
		reading, err := r.read(ctx, layer)
		if errors.Is(err, toc.ErrNotFormat) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if name, found := lossyName(reading.TOC); found {
			return nil, fmt.Sprintf("as %s: the name %q may stand for others, whose bytes are no UTF-8", r.format, name), nil
		}
		// Whether its chunks can be had as a device is found out here.
		d, err := device.New(blob, reading.TOC, l.gate)
		if errors.Is(err, device.ErrChunk) {
			return nil, fmt.Sprintf("as %s: %v", r.format, err), nil
		}
		if err != nil {
			return nil, "", err
		}
		p := prepared{Layer: unverifiedLayer(j.Image, from, r.format, reading.Digest), toc: reading.TOC}
		if p.Verified = trust != "" && reading.Verified && d.Verified(); p.Verified {
			p.Layer = verifiedLayer(from, r.format, trust)
		}
		p.Size = d.Size()
		j.keeping.Go(func() error { return l.saveTOC(p) })
		return &p, "", nil
	}
	return nil, why, nil
}

// download streams a layer once: its device is filled and its table of contents
// made as it passes. The object gets its name when the digests are right. why says
// what its own table of contents could not be used for.
func (l *Library) download(ctx context.Context, j *Job, n int, blob source.Blob, why string) (p prepared, err error) {
	from := j.Image.Layers[n]
	draft, err := j.Root.NewDraft()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, draft.Discard()) }()
	body, err := blob.ReadRange(ctx, 0, blob.Size())
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	place := int64(0)
	t, sums, err := tarscan.Scan(ctx, body, tarscan.Options{Data: func(e *toc.Entry) (io.WriterAt, error) {
		at := place
		place += e.Extent()
		return io.NewOffsetWriter(draft, at), nil
	}})
	if err != nil {
		return p, blame(ctx, blob, from, err)
	}
	if sums.Digest != from.Digest.String() {
		return p, wrongDigest(sums.Digest, from, toc.ErrDigest)
	}
	if from.DiffID != "" && sums.DiffID != from.DiffID.String() {
		return p, fmt.Errorf("the layer has DiffID %s, the configuration says %s: %w", sums.DiffID, from.DiffID, toc.ErrDigest)
	}
	hideMarks(t, from.Annotations)
	p = prepared{Layer: scannedLayer(from), toc: t}
	p.Size, p.Why = t.DeviceSize(), why
	if place != p.Size {
		return p, fmt.Errorf("internal error: files take %d bytes of a device of %d", place, p.Size)
	}
	if p.Size > 0 {
		meta, err := j.Meta(n, p.Layer)
		if err != nil {
			return p, err
		}
		if err := draft.Commit(meta); err != nil {
			return p, err
		}
	}
	return p, l.saveTOC(p)
}

// hideMarks takes what an eStargz builder adds to a layer out of a table of contents
// that was made by scanning it, so that the image is the same whether or not its
// registry has ranges. What is taken out keeps its place.
func hideMarks(t *toc.TOC, annotations map[string]string) {
	const index = "stargz.index.json"
	ours := func(e *toc.Entry) bool {
		return e.Type == toc.Regular && (e.Name == index || e.Name == ".prefetch.landmark" || e.Name == ".no.prefetch.landmark")
	}
	built := annotations[estargz.TOCDigest] != ""
	for i := range t.Entries {
		built = built || t.Entries[i].Type == toc.Regular && t.Entries[i].Name == index
	}
	if !built {
		return
	}
	kept := t.Entries[:0]
	for _, e := range t.Entries {
		switch {
		case !ours(&e):
			kept = append(kept, e)
		case e.HoldsPlace():
			kept = append(kept, toc.Entry{Type: toc.Replaced, Size: e.Size, Chunks: e.Chunks})
		}
	}
	t.Entries = kept
}

// blame tells a layer that was never right from one that is not what its digest
// says, which nobody knows where reading it failed half way.
func blame(ctx context.Context, blob source.Blob, l oci.Layer, err error) error {
	for _, its := range []error{source.ErrUnreachable, source.ErrDenied, source.ErrNotFound, source.ErrBusy, source.ErrChanged, source.ErrNotBytes} {
		if errors.Is(err, its) {
			return err
		}
	}
	body, e := blob.ReadRange(ctx, 0, blob.Size())
	if e != nil {
		return err
	}
	got, e := digest.FromReader(body)
	if e = errors.Join(e, body.Close()); e != nil || got == l.Digest {
		return err
	}
	return wrongDigest(got.String(), l, fmt.Errorf("%w: %w", toc.ErrDigest, err))
}

func wrongDigest(got string, l oci.Layer, err error) error {
	return &source.WrongError{Err: fmt.Errorf("the blob has digest %s, the manifest says %s: %w", got, l.Digest, err)}
}

// merge writes the filesystem image and makes the plan.
func (l *Library) merge(j *Job, key string, layers []prepared) (*Plan, error) {
	var in []image.Layer
	p := &Plan{Image: *j.Image, Key: key, Sequential: j.before != nil && j.before.Sequential}
	for _, layer := range layers {
		in = append(in, image.Layer{TOC: layer.toc, Tag: string(layer.Device)})
		p.Layers = append(p.Layers, layer.Layer)
		p.Sequential = p.Sequential || layer.sequential
	}
	// A server that answered without a range once is asked for ranges all the same
	// where a layer cannot be read without.
	if slices.ContainsFunc(p.Layers, func(l Layer) bool { return l.Format != Scanned && l.Size > 0 }) {
		p.Sequential = false
	}
	merged, err := image.Merge(in)
	if err != nil {
		return nil, err
	}
	p.Devices, p.Files = merged.Layers, merged.Files
	dir := filepath.Join(l.dir, "images", key)
	if err := clearWay(dir, true); err != nil {
		return nil, fmt.Errorf("keep the image: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep the image: %w", err)
	}
	p.Metadata = filepath.Join(dir, "metadata.erofs")
	sum := summing{sum: sha256.New()}
	err = replace(p.Metadata, func(w io.Writer) error {
		sum.to = w
		return erofs.Write(&sum, merged.Image)
	})
	if err != nil {
		return nil, err
	}
	p.Sum, p.Bytes = hex.EncodeToString(sum.sum.Sum(nil)), sum.n
	return p, nil
}

// summing sums what is written.
type summing struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func (s *summing) Write(p []byte) (n int, err error) {
	n, err = s.to.Write(p)
	s.n += int64(n)
	if _, e := s.sum.Write(p[:n]); err == nil {
		err = e
	}
	return n, err
}
