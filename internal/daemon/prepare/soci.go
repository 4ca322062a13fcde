package prepare

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
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
	layer.Verified = z.Version == 2
	return layer
}

// spansSum is what s is known by.
func spansSum(s *soci.Spans) (string, error) {
	sum, err := s.Sum()
	return hex.EncodeToString(sum[:]), err
}

// readSOCI reads a layer's table of contents from its zTOC: nil where it has none that
// can be used, and why.
func (l *Library) readSOCI(ctx context.Context, j *Job, n int, blob source.Blob) (p *prepared, why string, err error) {
	from := j.Image.Layers[n]
	if source.IsSequential(blob) {
		return nil, "", nil
	}
	z, err := j.zTOC(ctx, from)
	if err != nil || z == nil {
		return nil, "", err
	}
	p, err = l.readZtoc(ctx, j, n, z)
	if errors.Is(err, toc.ErrNotFormat) || errors.Is(err, toc.ErrInvalid) || errors.Is(err, toc.ErrLimit) {
		return nil, fmt.Sprintf("as %s: %v", z.format(), err), nil
	}
	return p, "", err
}

func (l *Library) readZtoc(ctx context.Context, j *Job, n int, z *Ztoc) (p *prepared, err error) {
	from := j.Image.Layers[n]
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

// index is a zTOC as spans.Index. The registry's word is not enough for what readers
// are shown: a wrong window makes wrong bytes, and no digest of a span tells. So
// nothing is decoded by a zTOC before all of it was found to have its digest.
type index struct {
	*soci.Reader
	library *Library
	id      ondemand.ObjectID
	digest  digest.Digest
	remote  source.Blob

	turn chan struct{} // has room for who settles

	mu      sync.Mutex
	kept    source.Blob           // the zTOC's file; nil: not known to be there
	settled bool                  // what is kept has its digest
	bad     error                 // what was read is not the zTOC
	until   time.Time             // when bad is forgotten; zero: never
	waiting map[*waiting]struct{} // those who wait until it is settled
}

// waiting is somebody who waits with a deadline that runs from the last progress.
type waiting struct{ ctx context.Context }

// Size implements spans.Index.
func (x *index) Size() int64 { return x.Spans().Uncompressed }

// Close implements spans.Index.
func (x *index) Close() error { return x.remote.Close() }

// Known implements spans.Index.
func (x *index) Known(off int64) (from, end int64, known bool) { return x.Place(off) }

// Find implements spans.Index.
func (x *index) Find(ctx context.Context, off int64) (spans.Span, error) {
	if err := x.settle(ctx); err != nil {
		return spans.Span{}, err
	}
	found, err := x.Covering(ctx, off, off+1)
	if err != nil {
		return spans.Span{}, err
	}
	s := &found[0]
	return spans.Span{From: s.Checkpoint, End: min(s.End, x.Size()), InEnd: s.BlobOff + s.BlobLen, Digest: s.Digest}, nil
}

// ztocBlob is the zTOC.
type ztocBlob struct{ *index }

// Size implements toc.Blob.
func (x ztocBlob) Size() int64 { return x.remote.Size() }

// ReadRange implements toc.Blob.
func (x ztocBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	kept, err := x.open(ctx)
	if err != nil {
		return nil, err
	}
	if kept != nil {
		return kept.ReadRange(ctx, off, n)
	}
	return x.remote.ReadRange(ctx, off, n)
}

// open is what is kept, if it is.
func (x *index) open(ctx context.Context) (source.Blob, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept != nil {
		return x.kept, nil
	}
	kept, err := file.Open(ctx, x.library.ztocPath(x.id))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, source.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if kept.Size() != x.remote.Size() {
		return nil, kept.Close() // it is replaced
	}
	x.kept = kept
	return kept, nil
}

// settle reads the zTOC whole, keeps it, and verifies that it and what was read of it
// before belong to its digest; once. toc.ErrDigest: they do not, and nothing is read by
// it from then on, unless it was sent wrongly: that is asked for again after a while.
func (x *index) settle(ctx context.Context) error {
	if done, err := x.state(); done || err != nil {
		return err
	}
	defer x.wait(ctx)()
	select {
	case x.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-x.turn }()
	if done, err := x.state(); done || err != nil {
		return err
	}
	err := x.verifyKept(ctx)
	x.mu.Lock()
	defer x.mu.Unlock()
	if errors.Is(err, toc.ErrDigest) || errors.Is(err, toc.ErrInvalid) {
		x.bad = fmt.Errorf("zTOC %s: %w: %w", x.digest, err, source.ErrNotBytes)
		if wrong := (*source.WrongError)(nil); errors.As(err, &wrong) {
			x.until = time.Now().Add(wrongFor)
		}
		return errors.Join(x.bad, remove(x.library.ztocPath(x.id)), remove(x.library.spansPath(x.id)))
	}
	x.settled = err == nil
	return err
}

// wait has ctx told of progress until the function that it returns is called.
func (x *index) wait(ctx context.Context) (leave func()) {
	w := &waiting{ctx}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiting == nil {
		x.waiting = make(map[*waiting]struct{})
	}
	x.waiting[w] = struct{}{}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.waiting, w)
	}
}

// telling tells those who wait that bytes have come, as ondemand.Progress wants it: not
// before they are a block.
type telling struct {
	*index
	untold int
}

func (t *telling) Write(p []byte) (int, error) {
	if t.untold += len(p); t.untold >= ondemand.BlockSize {
		t.untold = 0
		t.mu.Lock()
		defer t.mu.Unlock()
		for w := range t.waiting {
			ondemand.Progress(w.ctx)
		}
	}
	return len(p), nil
}

// verifyKept keeps the zTOC and verifies it. What was kept before and is damaged is
// fetched anew.
func (x *index) verifyKept(ctx context.Context) error {
	fetched, err := x.keep(ctx)
	if err == nil {
		err = x.Verify(ctx, x.digest.String())
	}
	if fetched || !errors.Is(err, toc.ErrDigest) {
		return err
	}
	x.mu.Lock()
	x.kept = nil
	x.mu.Unlock()
	if err := remove(x.library.ztocPath(x.id)); err != nil {
		return err
	}
	if _, err := x.keep(ctx); err != nil {
		return err
	}
	return x.Verify(ctx, x.digest.String())
}

func (x *index) state() (settled bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.until.IsZero() && !time.Now().Before(x.until) {
		x.bad, x.until = nil, time.Time{}
	}
	return x.settled, x.bad
}

// wrongFor is how long nobody is asked again for a zTOC that all have sent wrongly.
const wrongFor = 30 * time.Second

// keep fetches the zTOC to its file, unless it is there.
func (x *index) keep(ctx context.Context) (fetched bool, err error) {
	if kept, err := x.open(ctx); err != nil || kept != nil {
		return false, err
	}
	ctx, refuted := source.WithRefuted(ctx)
	from := &source.Noted{Wrapper: source.Wrapper{Blob: x.remote}}
	return true, refuted.Until(func() error {
		return replace(x.library.ztocPath(x.id), func(w io.Writer) error { return x.fetch(ctx, from, w) })
	}, func() (bool, error) { return from.Refute(), nil })
}

// fetch writes the zTOC to w.
func (x *index) fetch(ctx context.Context, from source.Blob, w io.Writer) (err error) {
	body, err := from.ReadRange(ctx, 0, from.Size())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum, &telling{index: x}), body); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != x.digest.String() {
		return &source.WrongError{Err: fmt.Errorf("it is %s: %w", got, toc.ErrDigest)}
	}
	return nil
}

func remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
