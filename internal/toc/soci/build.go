package soci

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/zran"
)

// BuildOptions say how a zTOC is made.
type BuildOptions struct {
	// SpanSize is how far apart checkpoints are at least; 0: DefaultSpanSize.
	SpanSize int64
	// Tool names the maker.
	Tool string
	// Stored is for a layer that is not compressed.
	Stored bool
	// MaxSpan bounds the bytes of a span, compressed and not, together: who reads one
	// holds both. 0: there is no bound. A block of deflate is not cut, so that spans may be
	// much larger than SpanSize.
	MaxSpan int64
	// MaxCheckpoints bounds the bytes of all checkpoints; 0: 1 GiB.
	MaxCheckpoints int64
}

// Build makes the zTOC of a layer, which it reads once, to its end. The same layer
// and options give the same bytes. toc.ErrNotFormat: the layer is no gzip file, or no
// tar, or holds what a zTOC cannot say, or spans of it are too large; toc.ErrLimit: it is
// too large for one. It may be read all the same by who scans it. Errors of reading the
// layer come back as they are.
//
// It holds the zTOC in memory, and of the layer no more than some buffers.
func Build(ctx context.Context, layer io.Reader, o BuildOptions) ([]byte, error) {
	if o.SpanSize == 0 {
		o.SpanSize = DefaultSpanSize
	}
	if o.SpanSize < 0 || o.SpanSize > MaxSpanSize {
		return nil, fmt.Errorf("make zTOC: spans of %d bytes: %w", o.SpanSize, toc.ErrLimit)
	}
	if o.MaxCheckpoints == 0 {
		o.MaxCheckpoints = maxCheckpoints
	}
	z, points, err := build(ctx, layer, o)
	if err != nil {
		return nil, fmt.Errorf("make zTOC: %w", err)
	}
	return Marshal(z, points)
}

// maxCheckpoints is 1 GiB: spans of the usual size of a layer of 128 GiB.
const maxCheckpoints = 1 << 30

func build(ctx context.Context, layer io.Reader, o BuildOptions) (*Ztoc, []zran.Checkpoint, error) {
	listed, out := io.Pipe()
	l := &lister{in: listed}
	done := make(chan error, 1)
	go func() {
		err := l.list()
		// errListed: the layer may go on, with padding.
		done <- errors.Join(err, listed.CloseWithError(cmp.Or(err, errListed)))
	}()
	d := &digester{in: layer, ctx: ctx, sum: sha256.New()}
	s := &Spans{Codec: toc.Gzip, SpanSize: o.SpanSize}
	points, cause := d.run(s, &ignoring{out}, o)
	err := errors.Join(cause, out.CloseWithError(cause)) // nil: io.EOF
	if listing := <-done; listing != nil && (cause == nil || !errors.Is(listing, cause)) {
		err = listing // and not what followed from it
	}
	if err != nil {
		if d.failed == nil && d.err == nil && !errors.Is(err, toc.ErrLimit) && !errors.Is(err, toc.ErrNotFormat) {
			err = fmt.Errorf("%w: %w", err, toc.ErrNotFormat) // the layer's bytes are all that can be wrong
		}
		return nil, nil, err
	}
	s.BlobSize, s.Uncompressed = d.pos, l.end
	return &Ztoc{Tool: o.Tool, Files: l.files, Spans: s}, points, nil
}

// run reads the layer to its end, writes it uncompressed to out, and finds the
// spans with their digests.
func (d *digester) run(s *Spans, out io.Writer, o BuildOptions) ([]zran.Checkpoint, error) {
	if o.Stored {
		s.Codec = toc.Stored
		buf := make([]byte, 64<<10)
		for at := int64(0); ; {
			n, err := io.ReadFull(d, buf[:min(int64(len(buf)), at+o.SpanSize-d.pos)])
			if _, err := out.Write(buf[:n]); err != nil {
				return nil, err
			}
			switch {
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
				if d.pos > at {
					s.Digests = append(s.Digests, d.cut(d.pos, d.pos))
				}
				return nil, nil
			case err != nil:
				return nil, err
			case d.pos == at+o.SpanSize:
				at = d.pos
				s.Digests = append(s.Digests, d.cut(at, at))
			}
		}
	}
	var points []zran.Checkpoint
	total, err := zran.Build(d, o.SpanSize, out, func(c zran.Checkpoint) error {
		if len(points) == 0 {
			d.cut(c.Start(), c.Start()) // the header before the first span has no digest
		} else {
			s.Digests = append(s.Digests, d.cut(c.In, c.Start()))
			if err := o.checkSpan(points[len(points)-1], c.In, c.Out); err != nil {
				return err
			}
		}
		points = append(points, c)
		if len(points) > MaxSpans || int64(len(points))*recordSize > o.MaxCheckpoints {
			return fmt.Errorf("more than %d spans, or %d bytes of checkpoints: %w", MaxSpans, o.MaxCheckpoints, toc.ErrLimit)
		}
		return d.err
	})
	if err != nil {
		return nil, err
	}
	s.Digests = append(s.Digests, d.cut(d.pos, d.pos))
	if err := o.checkSpan(points[len(points)-1], d.pos, total.Decompressed); err != nil {
		return nil, err
	}
	return points, d.err
}

// checkSpan holds the span from c to in and out against MaxSpan.
func (o *BuildOptions) checkSpan(c zran.Checkpoint, in, out int64) error {
	if n := in - c.Start() + out - c.Out; o.MaxSpan > 0 && n > o.MaxSpan {
		return fmt.Errorf("what lies between two places where decoding can begin takes %d bytes, compressed and not: %w", n, toc.ErrNotFormat)
	}
	return nil
}

// digester sums up what is read through it in pieces, whose ends are known when
// it has read a little further.
type digester struct {
	in      io.Reader
	ctx     context.Context
	pos     int64 // in the layer
	pending []byte
	sum     hash.Hash
	err     error // a span that cannot be cut
	failed  error // of in, or the end of ctx
}

// lag is how much is kept of what was read.
const lag = zran.ReadAhead + 1

func (d *digester) Read(p []byte) (int, error) {
	if err := d.ctx.Err(); err != nil {
		d.failed = err
		return 0, err
	}
	n, err := d.in.Read(p)
	d.pos += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		d.failed = err
	}
	if len(d.pending)+n > 4*lag {
		done := max(0, len(d.pending)-lag)
		d.sum.Write(d.pending[:done])
		d.pending = append(d.pending[:0], d.pending[done:]...)
	}
	d.pending = append(d.pending, p[:n]...)
	return n, err
}

// cut is the digest of the piece that ends at end; the next one begins at next, at
// end or a byte before.
func (d *digester) cut(end, next int64) (sum [sha256.Size]byte) {
	from := d.pos - int64(len(d.pending))
	if next < from || end > d.pos {
		d.err = fmt.Errorf("internal error: a span ends at %d, [%d,%d) is there", end, from, d.pos)
		return sum
	}
	d.sum.Write(d.pending[:end-from])
	d.sum.Sum(sum[:0])
	d.sum.Reset()
	d.pending = append(d.pending[:0], d.pending[next-from:]...)
	return sum
}

// errListed ends the pipe at the side of the list, which ends before the layer.
var errListed = errors.New("listed")

// ignoring goes on where nobody reads any more.
type ignoring struct{ to io.Writer }

func (i *ignoring) Write(p []byte) (int, error) {
	n, err := i.to.Write(p)
	if errors.Is(err, errListed) {
		return len(p), nil
	}
	return n, err
}

// lister makes the list of files of an uncompressed layer.
type lister struct {
	in    io.Reader
	pos   int64
	files []File
	end   int64
	text  int
}

func (l *lister) Read(p []byte) (int, error) {
	n, err := l.in.Read(p)
	l.pos += int64(n)
	return n, err
}

// list reads the layer as SOCI does, with archive/tar
// (ztoc/toc_builder.go, metadataFromTarReader). What that one refuses is
// refused here, and sparse files, which it lists wrongly.
func (l *lister) list() error {
	for r := tar.NewReader(l); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			l.end = l.pos
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fmt.Errorf("read layer at %d: %w", l.pos, err)
		}
		f := File{
			Name: h.Name, Link: h.Linkname, Type: typeName(h.Typeflag), Off: l.pos, Size: h.Size,
			Mode: h.Mode, UID: uint32(h.Uid), GID: uint32(h.Gid), Uname: h.Uname, Gname: h.Gname,
			Major: h.Devmajor, Minor: h.Devminor,
		}
		if f.Type == "" {
			return fmt.Errorf("%.200q: entry of type %q: %w", h.Name, h.Typeflag, toc.ErrNotFormat)
		}
		if int64(f.UID) != int64(h.Uid) || int64(f.GID) != int64(h.Gid) {
			return fmt.Errorf("%.200q: owner %d:%d: %w", h.Name, h.Uid, h.Gid, toc.ErrNotFormat)
		}
		when, err := h.ModTime.UTC().MarshalText()
		if err != nil {
			return fmt.Errorf("%.200q: time %d: %w", h.Name, h.ModTime.Unix(), toc.ErrNotFormat)
		}
		f.ModTime = string(when)
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return fmt.Errorf("%.200q: a sparse file: %w", h.Name, toc.ErrNotFormat)
			}
			f.PAX = append(f.PAX, Record{k, v})
			l.text += len(k) + len(v)
		}
		slices.SortFunc(f.PAX, func(a, b Record) int { return strings.Compare(a.Key, b.Key) })
		l.files = append(l.files, f)
		l.text += len(f.Name) + len(f.Link)
		if len(l.files) > toc.MaxEntries || l.text > toc.MaxText || l.pos > math.MaxInt64/2 {
			return fmt.Errorf("%d entries: %w", len(l.files), toc.ErrLimit)
		}
	}
}

// typeName is the opposite of entryType.
func typeName(flag byte) string {
	switch flag {
	case tar.TypeReg:
		return "reg"
	case tar.TypeDir:
		return "dir"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeLink:
		return "hardlink"
	case tar.TypeChar:
		return "char"
	case tar.TypeBlock:
		return "block"
	case tar.TypeFifo:
		return "fifo"
	}
	return ""
}
