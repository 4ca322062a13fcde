package soci

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/zran"
)

// The vector of checkpoints of a gzip layer, little endian
// (ztoc/compression/gzip_zinfo.c, zinfo_to_blob): their number and how far apart
// they should be, then for each in, out, bits and the window.
const (
	recordsOff = 4 + 8
	headSize   = 8 + 8 + 1
	recordSize = headSize + windowSize
)

// Spans are what the metadata of a zTOC say of the pieces that its layer can be
// decoded in. It is all that Reader needs of them, and can be kept with Encode.
// Its fields are not to be changed.
type Spans struct {
	// Codec is toc.Gzip, or toc.Stored for a layer that is not compressed.
	Codec toc.Codec
	// BlobSize is the size of the layer's blob, ZtocSize that of the zTOC.
	BlobSize, ZtocSize int64
	// Uncompressed is where the layer's archive ends; padding may follow.
	Uncompressed int64
	// SpanSize is the least distance of two checkpoints in the uncompressed
	// layer; of layers that are not compressed, the distance.
	SpanSize int64
	// Digests are the SHA-256 of each span's range of the blob.
	Digests [][sha256.Size]byte
	// At is where the records of checkpoints begin in the zTOC. FirstLeftOut is
	// true for the first form of the vector, which has none of the first span:
	// that one begins after a gzip header without options.
	At           int64
	FirstLeftOut bool
	// Headers are those of the layer's files, as Ztoc.Contents has them; nil: it has no
	// data, or With was not told.
	Headers *Headers

	kept    [][2]int64 // ranges of the zTOC that the metadata were read from
	keptSum [sha256.Size]byte
	// sums are of each record, once all of the zTOC was verified.
	sums [][sha256.Size]byte
}

// Count is how many spans there are.
func (s *Spans) Count() int { return len(s.Digests) }

// With is s with the headers of the layer's files.
func (s *Spans) With(h *Headers) *Spans {
	with := *s
	with.Headers = h
	return &with
}

// Verified tells whether all that is here was verified by the zTOC's digest, and
// all that will be read of its checkpoints is.
func (s *Spans) Verified() bool { return s.sums != nil }

// Sum is the SHA-256 of all that is here before the zTOC is verified: what was read of
// its metadata, and what follows from that.
func (s *Spans) Sum() ([sha256.Size]byte, error) {
	read, sum := *s, sha256.New()
	read.sums = nil
	err := read.Encode(sum)
	return [sha256.Size]byte(sum.Sum(nil)), err
}

// Record is the range of the zTOC that has the checkpoint of span i; n is 0 where
// none is needed.
func (s *Spans) Record(i int) (off, n int64) {
	switch {
	case s.Codec == toc.Stored:
		return 0, 0
	case !s.FirstLeftOut:
		return s.At + int64(i)*recordSize, recordSize
	case i == 0:
		return 0, 0
	}
	return s.At + int64(i-1)*recordSize, recordSize
}

// fixed is the checkpoint of a span that has no record.
func (s *Spans) fixed(i int) zran.Checkpoint {
	if s.Codec == toc.Stored {
		return zran.Checkpoint{In: int64(i) * s.SpanSize, Out: int64(i) * s.SpanSize}
	}
	return zran.Checkpoint{In: 10} // RFC 1952, section 2.3
}

// parse reads a record, or only its head; the window stays the caller's.
func parseRecord(b []byte) zran.Checkpoint {
	return zran.Checkpoint{
		In: int64(binary.LittleEndian.Uint64(b)), Out: int64(binary.LittleEndian.Uint64(b[8:])),
		Bits: b[16], Window: b[headSize:],
	}
}

// bit is where a checkpoint begins in the blob.
func bit(c zran.Checkpoint) int64 { return c.In*8 - int64(c.Bits) }

// check says whether c can be the checkpoint of span i.
func (s *Spans) check(i int, c zran.Checkpoint) error {
	switch {
	case s.Codec == toc.Stored: // it was not read, but made by fixed
	case c.Bits > 7:
		return invalid("span %d begins with %d bits of a byte", i, c.Bits)
	case c.In <= 0 || c.In > s.BlobSize || c.Start() >= s.BlobSize:
		return invalid("span %d begins at %d of a layer of %d bytes", i, c.In, s.BlobSize)
	case i == 0 && c.Out != 0:
		return invalid("the first span begins at %d", c.Out)
	case c.Out < 0 || c.Out/maxRatio > c.In:
		return invalid("span %d begins at %d compressed and %d uncompressed", i, c.In, c.Out)
	}
	return nil
}

// checkPair says whether span j can begin at d where span i < j begins at c.
func checkPair(i int, c zran.Checkpoint, j int, d zran.Checkpoint) error {
	switch between := int64(j - i); {
	case bit(d)-bit(c) < between:
		return invalid("span %d begins at %d compressed, and span %d at %d", i, c.In, j, d.In)
	// Only where nothing is decoded yet does SOCI's builder repeat itself.
	case d.Out < c.Out || d.Out > 0 && d.Out-c.Out < between:
		if d.Out > c.Out && c.Out == 0 {
			return nil
		}
		return invalid("span %d begins at %d uncompressed, and span %d at %d", i, c.Out, j, d.Out)
	case (d.Out-c.Out)/maxRatio > d.In-c.In+1:
		return invalid("the %d bytes from span %d to span %d cannot be %d uncompressed", d.In-c.In, i, j, d.Out-c.Out)
	}
	return nil
}

// kept is encoded as: magic, version, then numbers as below, digests, a checksum.
const (
	spansMagic   = "LACUNA-SPANS"
	spansVersion = 2
)

// spansHead is all of Spans that has a fixed size.
type spansHead struct {
	Magic                                          [len(spansMagic)]byte
	Version                                        uint32
	BlobSize, ZtocSize, Uncompressed, SpanSize, At int64
	Codec                                          toc.Codec
	FirstLeftOut, Verified                         bool
	KeptSum                                        [sha256.Size]byte
	Kept, Count, Headers                           uint32
}

// Encode writes s for Decode, in one form.
func (s *Spans) Encode(w io.Writer) error {
	head := spansHead{
		Version: spansVersion, BlobSize: s.BlobSize, ZtocSize: s.ZtocSize, Uncompressed: s.Uncompressed, SpanSize: s.SpanSize, At: s.At,
		Codec: s.Codec, FirstLeftOut: s.FirstLeftOut, Verified: s.Verified(), KeptSum: s.keptSum,
		Kept: uint32(len(s.kept)), Count: uint32(len(s.Digests)),
	}
	copy(head.Magic[:], spansMagic)
	headers := s.Headers
	if headers == nil {
		headers = new(Headers)
	}
	head.Headers = uint32(headers.Len())
	var b bytes.Buffer
	for _, part := range []any{head, s.kept, s.Digests, s.sums, headers.blocks, headers.sums} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return fmt.Errorf("encode spans: %w", err)
		}
	}
	b.Write(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b.Bytes())))
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	return nil
}

// maxEncoded is more than the largest Spans take.
const maxEncoded = 1<<20 + MaxSpans*2*sha256.Size + toc.MaxEntries*(2+headerSum)

// DecodeSpans reads what Encode wrote, to the end of r. Anything else is
// toc.ErrInvalid.
func DecodeSpans(r io.Reader) (*Spans, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxEncoded))
	if err != nil {
		return nil, fmt.Errorf("decode spans: %w", err)
	}
	s, err := decodeSpans(data)
	if err != nil {
		return nil, fmt.Errorf("decode spans: %w", err)
	}
	return s, nil
}

func decodeSpans(data []byte) (*Spans, error) {
	var h spansHead
	size := binary.Size(h)
	if len(data) < size+4 {
		return nil, invalid("%d bytes", len(data))
	}
	body := data[:len(data)-4]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(data[len(body):]) {
		return nil, invalid("wrong checksum")
	}
	n, err := binary.Decode(body, binary.LittleEndian, &h)
	if err != nil || string(h.Magic[:]) != spansMagic || h.Version != spansVersion {
		return nil, invalid("not version %d", spansVersion)
	}
	each := int64(sha256.Size)
	if h.Verified {
		each *= 2
	}
	if h.Kept > 2 || h.Count == 0 || h.Count > MaxSpans || h.Headers > toc.MaxEntries ||
		int64(len(body)-n) != int64(h.Kept)*16+int64(h.Count)*each+int64(h.Headers)*(2+headerSum) {
		return nil, invalid("%d spans in %d bytes", h.Count, len(body))
	}
	s := &Spans{
		Codec: h.Codec, BlobSize: h.BlobSize, ZtocSize: h.ZtocSize, Uncompressed: h.Uncompressed, SpanSize: h.SpanSize, At: h.At,
		FirstLeftOut: h.FirstLeftOut, keptSum: h.KeptSum,
		kept: make([][2]int64, h.Kept), Digests: make([][sha256.Size]byte, h.Count),
	}
	parts := []any{s.kept, s.Digests}
	if h.Verified {
		s.sums = make([][sha256.Size]byte, h.Count)
		parts = append(parts, s.sums)
	}
	if h.Headers > 0 {
		s.Headers = &Headers{make([]uint16, h.Headers), make([]byte, h.Headers*headerSum)}
		parts = append(parts, s.Headers.blocks, s.Headers.sums)
	}
	for _, part := range parts {
		m, err := binary.Decode(body[n:], binary.LittleEndian, part)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, toc.ErrInvalid)
		}
		n += m
	}
	return s, s.checkFields()
}

// checkFields says whether the zTOC has room for the records and the layer for
// the spans.
func (s *Spans) checkFields() error {
	last := s.Count() - 1
	off, n := s.Record(last)
	switch {
	case s.Codec != toc.Gzip && s.Codec != toc.Stored:
		return invalid("%s", s.Codec)
	case s.BlobSize <= 0 || s.BlobSize > toc.MaxDevice || s.SpanSize < 0 || s.SpanSize > MaxSpanSize:
		return invalid("spans of %d bytes of a layer of %d", s.SpanSize, s.BlobSize)
	case s.Codec == toc.Stored && (s.SpanSize == 0 || (s.BlobSize+s.SpanSize-1)/s.SpanSize != int64(s.Count())):
		return invalid("%d spans of %d bytes of a layer of %d", s.Count(), s.SpanSize, s.BlobSize)
	case s.At < 0 || s.At > s.ZtocSize || off+n > s.ZtocSize:
		return invalid("records of %d spans at %d of %d bytes", s.Count(), s.At, s.ZtocSize)
	}
	var end int64
	for _, k := range s.kept {
		if k[0] < end || k[1] < k[0] || k[1] > s.ZtocSize {
			return invalid("metadata at [%d,%d)", k[0], k[1])
		}
		end = k[1]
	}
	return nil
}
