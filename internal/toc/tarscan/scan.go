// Package tarscan makes the table of contents of a layer that has none, from one
// pass over all of it: plain tar, gzip or zstd. The data of each file is handed on
// as it passes, so that nothing has to be fetched twice.
//
// Layers are read as container programs do that unpack them with archive/tar:
// PAX and GNU headers, sparse files of every form, extended attributes in PAX
// records; global PAX headers and volume labels are passed over. What archive/tar
// refuses is refused here; the archive ends at two blocks of zeros, or with the stream. What
// follows is still read, since the digests are over all bytes.
//
// Every file gets chunks of at most ChunkSize with their digests. In a plain tar
// they say where the bytes lie. In a compressed layer they share one compressed
// range, which is the whole blob: to read one again, decode from the start.
package tarscan

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/pax"
)

// ChunkSize is the largest chunk that a file is cut into.
const ChunkSize = 4 << 20

// Options of a scan. The zero value scans within the usual limits and keeps no data.
type Options struct {
	// Data is called for every regular file that is not empty, in the layer's
	// order, before its data passes. e has name, size and metadata; it may be
	// read until Data returns. The data then goes to the writer, at offsets in the
	// file, ascending, in pieces that are only lent; holes are not written. Data that a nil
	// writer gets is passed over. A file that a later entry replaces is handed on
	// like any other, and keeps its place in the table of contents.
	Data func(e *toc.Entry) (io.WriterAt, error)
	// MaxSize bounds the uncompressed layer; 0 means DefaultMaxSize.
	MaxSize int64
	// MaxRatio bounds uncompressed to compressed size of what is larger than a
	// GiB uncompressed; 0 means DefaultMaxRatio.
	MaxRatio int64

	free int64 // what any layer may decode to, whatever the ratio
}

// Limits where Options says 0. Deflate cannot exceed 1032 to 1; zstd can.
const (
	DefaultMaxSize  = 64 << 30
	DefaultMaxRatio = 2000
)

func (o Options) withDefaults() Options {
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.MaxRatio == 0 {
		o.MaxRatio = DefaultMaxRatio
	}
	if o.free == 0 {
		o.free = 1 << 30
	}
	return o
}

// Sums are over all bytes of the layer, to its end.
type Sums struct {
	// Digest and Size are of the blob: what the manifest's descriptor says.
	Digest string
	Size   int64
	// DiffID and DiffSize are of the uncompressed layer: what the image's
	// configuration says.
	DiffID   string
	DiffSize int64
	// Codec that the blob is compressed with.
	Codec toc.Codec
}

// Scan reads a layer from r to its end. The sums are not compared with anything:
// before they are, what the table of contents says and what Data was given is
// only what some server has sent. Errors of r, of ctx and of Data's writers come
// back wrapped.
func Scan(ctx context.Context, r io.Reader, o Options) (*toc.TOC, Sums, error) {
	t, sums, err := scan(ctx, r, o.withDefaults())
	if err != nil {
		return nil, Sums{}, fmt.Errorf("scan layer: %w", err)
	}
	return t, sums, nil
}

func scan(ctx context.Context, r io.Reader, o Options) (_ *toc.TOC, _ Sums, err error) {
	packed := newMeter(ctx, r)
	in := bufio.NewReaderSize(packed, 128<<10)
	codec, err := sniff(in)
	if err != nil {
		return nil, Sums{}, err
	}
	plain, err := decode(codec, in)
	if err != nil {
		return nil, Sums{}, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	unpacked := newMeter(ctx, &bounded{r: plain, packed: packed, o: o})
	if codec == toc.Stored {
		unpacked.sum = nil // the same bytes have the same digest
	}
	s := &scanner{
		// Headers are read in blocks of 512 bytes, decoders like larger ones.
		archive: archive{r: bufio.NewReaderSize(unpacked, 64<<10)},
		b:       toc.NewBuilder(math.MaxInt64),
		o:       o, codec: codec, buf: make([]byte, 256<<10),
	}
	if err := s.entries(); err != nil {
		return nil, Sums{}, err
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{s.archive.r}, s.buf); err != nil {
		return nil, Sums{}, err
	}
	if _, err := io.CopyBuffer(io.Discard, onlyReader{in}, s.buf); err != nil {
		return nil, Sums{}, err
	}
	t, err := s.finish(packed.n)
	if err != nil {
		return nil, Sums{}, err
	}
	sums := Sums{Digest: packed.digest(), Size: packed.n, DiffSize: unpacked.n, Codec: codec}
	if sums.DiffID = sums.Digest; unpacked.sum != nil {
		sums.DiffID = unpacked.digest()
	}
	return t, sums, nil
}

// onlyReader hides methods that would take the copying's buffer away.
type onlyReader struct{ io.Reader }

// scanner makes entries of an archive.
type scanner struct {
	archive archive
	b       *toc.Builder
	o       Options
	codec   toc.Codec
	buf     []byte
	files   []int // indices of entries with chunks
}

func (s *scanner) entries() error {
	for {
		h, err := s.archive.next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", s.archive.pos, err)
		}
		if h.typ == typeVolume {
			continue
		}
		e, err := h.entry()
		if err != nil {
			return err
		}
		i, err := s.b.Add(e)
		if err != nil {
			return err
		}
		if i < 0 || !s.b.Entry(i).HoldsPlace() {
			continue // data of a marker is nobody's
		}
		if err := s.file(h, i); err != nil {
			return fmt.Errorf("%.200q: %w", h.name, err)
		}
	}
}

// file hands on the data of entry i.
func (s *scanner) file(h *header, i int) error {
	var to io.WriterAt
	if s.o.Data != nil {
		e := *s.b.Entry(i)
		var err error
		if to, err = s.o.Data(&e); err != nil {
			return err
		}
	}
	s.files = append(s.files, i)
	extents := h.extents
	if extents == nil {
		extents = []fragment{{0, h.size}}
	}
	for _, f := range extents {
		for f.n > 0 {
			n := min(f.n, ChunkSize)
			if err := s.chunk(i, f.off, n, to); err != nil {
				return err
			}
			f.off, f.n = f.off+n, f.n-n
		}
	}
	return nil
}

// chunk hands on n bytes of the file at off, which come next in the stream.
func (s *scanner) chunk(i int, off, n int64, to io.WriterAt) error {
	c := toc.Chunk{Off: off, Len: n, Codec: s.codec, Inner: s.archive.pos}
	if s.codec == toc.Stored {
		c.BlobOff, c.BlobLen, c.Inner = s.archive.pos, n, 0
	}
	sum := sha256.New()
	for n > 0 {
		p := s.buf[:min(n, int64(len(s.buf)))]
		if err := s.archive.data(p); err != nil {
			return err
		}
		sum.Write(p)
		if to != nil {
			if _, err := to.WriteAt(p, off); err != nil {
				return err
			}
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	c.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return s.b.AddChunk(i, c)
}

// finish gives chunks of a compressed layer their range, now that its end is known.
func (s *scanner) finish(size int64) (*toc.TOC, error) {
	s.b.SetBlobSize(size)
	if s.codec != toc.Stored {
		for _, i := range s.files {
			chunks := s.b.Entry(i).Chunks
			for j := range chunks {
				chunks[j].BlobLen = size
			}
		}
	}
	return s.b.Finish()
}

// entry is the header in the model's form.
func (h *header) entry() (toc.Entry, error) {
	e := toc.Entry{Name: h.name, Mode: uint32(h.mode & 0o7777), Sec: h.sec, Nsec: h.nsec}
	switch h.typ {
	case typeRegular, typeContiguous, typeSparse:
		e.Type, e.Size = toc.Regular, h.real
	case typeDirectory:
		e.Type = toc.Directory
	case typeSymlink:
		e.Type, e.Link = toc.Symlink, h.link
	case typeHardlink:
		e.Type, e.Link = toc.Hardlink, h.link
	case typeChar, typeBlock:
		e.Type = toc.Char
		if h.typ == typeBlock {
			e.Type = toc.Block
		}
		if h.major < 0 || h.major > math.MaxUint32 || h.minor < 0 || h.minor > math.MaxUint32 {
			return e, invalid("%.200q: device number %d:%d", h.name, h.major, h.minor)
		}
		e.Major, e.Minor = uint32(h.major), uint32(h.minor)
	case typeFifo:
		e.Type = toc.Fifo
	default:
		return e, invalid("%.200q: entry of type %q", h.name, h.typ)
	}
	if h.uid < 0 || h.uid > math.MaxUint32 || h.gid < 0 || h.gid > math.MaxUint32 {
		return e, invalid("%.200q: owner %d:%d", h.name, h.uid, h.gid)
	}
	e.UID, e.GID = uint32(h.uid), uint32(h.gid)
	var err error
	if e.Xattrs, err = pax.Xattrs(h.pax); err != nil {
		err = fmt.Errorf("%.200q: %w", h.name, err)
	}
	return e, err
}
