package soci

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Ztoc is what the metadata of a zTOC say.
type Ztoc struct {
	// Tool that made it, in its own words.
	Tool string
	// Files are the entries of the layer, in its order.
	Files []File
	// Spans are the pieces that the layer can be decoded in.
	Spans *Spans
}

// File is one entry of a layer, as archive/tar reads its header.
type File struct {
	// Name and Link are verbatim.
	Name, Link string
	// Type is one of reg, dir, symlink, hardlink, char, block and fifo.
	Type string
	// Off is where the data begins in the uncompressed layer; before it lies
	// the header's block. Size is that of the file.
	Off, Size    int64
	Mode         int64
	UID, GID     uint32
	Uname, Gname string
	// ModTime is in the form of RFC 3339, with fractions of a second; empty
	// where the time cannot be written so.
	ModTime      string
	Major, Minor int64
	// PAX has the records of the extended header, by key.
	PAX []Record
}

// Record is a record of a PAX extended header.
type Record struct{ Key, Value string }

// firstRead is how much of a zTOC is read at least at first: with SOCI's layout that
// is all before the checkpoints of layers of up to about 90 spans.
const firstRead = 8 << 10

// firstPart is how much is read of the zTOC of a layer of the given size. A span takes
// 80 bytes there; layers are taken to compress to a third.
func firstPart(layer int64) int64 {
	return min(firstRead+3*80*(layer/DefaultSpanSize), 8*firstRead)
}

// stray is how much is read around what is needed to find the checkpoints and
// does not lie in the first bytes, and maxStray how often. SOCI's writer never does that.
const (
	stray    = 4 << 10
	maxStray = 8
)

// Slots of the tables, as ztoc/ztoc.fbs numbers them.
const (
	ztocVersion, ztocTool, ztocCompressed, ztocUncompressed, ztocTOC, ztocInfo = 0, 1, 2, 3, 4, 5

	infoAlgorithm, infoMaxSpan, infoDigests, infoCheckpoints = 0, 1, 2, 3

	fileName, fileType, fileOff, fileSize, fileLink, fileMode, fileUID = 0, 1, 2, 3, 4, 5, 6
	fileGID, fileUname, fileGname, fileModTime, fileMajor, fileMinor   = 7, 8, 9, 10, 11, 12
	filePAX                                                            = 13

	algorithmGzip, algorithmStored = 1, 2
)

// Open reads the metadata of a zTOC of a layer whose blob has the given size: all
// but the checkpoints. What it finds is not verified before Reader.Verify says so.
func Open(ctx context.Context, z toc.Blob, layer int64) (*Ztoc, error) {
	f, err := fetch(ctx, z, layer)
	if err != nil {
		return nil, fmt.Errorf("read zTOC: %w", err)
	}
	zt, err := parse(f, layer)
	if err != nil {
		return nil, fmt.Errorf("zTOC: %w", err)
	}
	return zt, nil
}

// fetch reads what is not the checkpoints. FlatBuffers may lie in any order; the
// library that SOCI writes with puts tables before what they refer to, so the
// first bytes say where the checkpoints are.
func fetch(ctx context.Context, z toc.Blob, layer int64) (*flat, error) {
	size := z.Size()
	if size < 8 {
		return nil, invalid("%d bytes are no zTOC", size)
	}
	head, err := read(ctx, z, 0, min(size, firstPart(max(0, layer))))
	if err != nil {
		return nil, err
	}
	begin, n, err := find(ctx, z, head)
	if err != nil {
		return nil, err
	}
	end := begin + n
	if n <= firstRead {
		begin = end // not worth a hole
	} else {
		begin += recordsOff
	}
	if size-(end-begin) > MaxMetadata {
		return nil, fmt.Errorf("metadata of %d bytes: %w", size-(end-begin), toc.ErrLimit)
	}
	if known := int64(len(head)); known < begin {
		more, err := read(ctx, z, known, begin-known)
		if err != nil {
			return nil, err
		}
		head = append(head, more...)
	}
	if known := int64(len(head)); known >= end { // no hole, so one piece
		begin, end = known, known
	}
	tail, err := read(ctx, z, end, size-end)
	if err != nil {
		return nil, err
	}
	pieces := []piece{{0, head}, {end, tail}}
	if begin == end {
		pieces = []piece{{0, append(head, tail...)}}
	}
	return &flat{size: size, text: toc.MaxText, pieces: pieces}, nil
}

// find is the range of the checkpoints in a zTOC that begins with head. It
// reads, in small pieces, what it needs besides.
func find(ctx context.Context, z toc.Blob, head []byte) (at, n int64, err error) {
	f := &flat{size: z.Size(), text: firstRead, pieces: []piece{{0, head}}}
	for range maxStray {
		f.err, f.missed = nil, -1
		info := f.table(f.table(f.follow(0)).ref(ztocInfo))
		at, n = info.vector(infoCheckpoints, 1)
		if f.err == nil && n == 0 {
			f.fail("it has no checkpoints")
		}
		if f.missed < 0 {
			break
		}
		off := max(0, f.missed-stray/2)
		data, err := read(ctx, z, off, min(stray, f.size-off))
		if err != nil {
			return 0, 0, err
		}
		f.pieces = append(f.pieces, piece{off, data})
	}
	return at, n, f.err
}

// parse makes a Ztoc of the metadata of a layer's.
func parse(f *flat, layer int64) (*Ztoc, error) {
	root := f.table(f.follow(0))
	version := root.string(ztocVersion)
	if f.err == nil && version != Version {
		return nil, fmt.Errorf("version %.20q, only %s is known: %w", version, Version, toc.ErrInvalid)
	}
	z := &Ztoc{Tool: root.string(ztocTool)}
	compressed, uncompressed := root.i64(ztocCompressed), root.i64(ztocUncompressed)
	switch {
	case f.err != nil:
	case compressed != layer:
		return nil, invalid("it is of a layer of %d bytes, and this one has %d", compressed, layer)
	case compressed <= 0 || compressed > toc.MaxDevice:
		return nil, invalid("a layer of %d bytes", compressed)
	case uncompressed < 0 || uncompressed/maxRatio > compressed:
		return nil, invalid("%d bytes cannot be %d uncompressed", compressed, uncompressed)
	}
	var err error
	if z.Spans, err = f.spans(root.ref(ztocInfo), compressed); err != nil {
		return nil, err
	}
	z.Spans.Uncompressed = uncompressed
	at, n := f.table(root.ref(ztocTOC)).vector(0, 4)
	if f.err == nil && n > toc.MaxEntries {
		return nil, fmt.Errorf("%d files: %w", n, toc.ErrLimit)
	}
	f.bytes(at, 4*n)
	if f.err == nil && n > f.there()/leastFile {
		f.fail("%d files in %d bytes", n, f.there())
	}
	if f.err != nil {
		return nil, f.err
	}
	z.Files = make([]File, n)
	f.records = toc.MaxEntries
	for i := range z.Files {
		f.file(f.follow(at+4*int64(i)), &z.Files[i])
		if f.err != nil {
			return nil, fmt.Errorf("file %d of %d: %w", i, n, f.err)
		}
	}
	sum := sha256.New()
	for _, p := range f.pieces {
		sum.Write(p.data)
		z.Spans.kept = append(z.Spans.kept, [2]int64{p.off, p.off + int64(len(p.data))})
	}
	sum.Sum(z.Spans.keptSum[:0])
	return z, nil
}

// leastFile is the least that a file takes, since each has a table of its own: its offset
// in the list, and there where the vtable is, the name and where the data begin.
const leastFile = 4 + 4 + 4 + 8

// file reads the table of a file.
func (f *flat) file(at int64, to *File) {
	t := f.table(at)
	*to = File{
		Name: t.string(fileName), Type: t.string(fileType), Link: t.string(fileLink),
		Off: t.i64(fileOff), Size: t.i64(fileSize), Mode: t.i64(fileMode),
		UID: t.u32(fileUID), GID: t.u32(fileGID), Uname: t.string(fileUname), Gname: t.string(fileGname),
		ModTime: t.string(fileModTime), Major: t.i64(fileMajor), Minor: t.i64(fileMinor),
	}
	list, n := t.vector(filePAX, 4)
	if n == 0 || f.bytes(list, 4*n) == nil {
		return
	}
	// Any number of them may lead to one record, which takes more here than its offset.
	if f.records -= n; f.records < 0 {
		f.err = fmt.Errorf("more than %d records: %w", toc.MaxEntries, toc.ErrLimit)
		return
	}
	to.PAX = make([]Record, n)
	for i := range to.PAX {
		r := f.table(f.follow(list + 4*int64(i)))
		to.PAX[i] = Record{r.string(0), r.string(1)}
	}
}

// spans reads the table of the spans.
func (f *flat) spans(at, layer int64) (*Spans, error) {
	info := f.table(at)
	s := &Spans{BlobSize: layer, ZtocSize: f.size}
	list, count := info.vector(infoDigests, 4)
	algorithm := info.i8(infoAlgorithm, algorithmGzip)
	most := int64(int32(info.u32(infoMaxSpan)))
	switch {
	case f.err != nil:
		return nil, f.err
	case count == 0:
		return nil, invalid("it has no spans")
	case count > MaxSpans:
		return nil, fmt.Errorf("%d spans: %w", count, toc.ErrLimit)
	case most != count-1:
		return nil, invalid("%d spans, but digests of %d", most+1, count)
	}
	f.bytes(list, 4*count)
	s.Digests = make([][sha256.Size]byte, count)
	for i := range s.Digests {
		if !parseDigest(f.string(f.follow(list+4*int64(i))), &s.Digests[i]) {
			f.fail("span %d has no SHA-256", i)
		}
		if f.err != nil {
			return nil, f.err
		}
	}
	at, n := info.vector(infoCheckpoints, 1)
	switch algorithm {
	case algorithmGzip:
		f.gzipSpans(s, at, n)
	case algorithmStored:
		f.storedSpans(s, at, n)
	default:
		f.fail("compression %d", algorithm)
	}
	return s, f.err
}

// gzipSpans reads the head of the vector of checkpoints at at, which has n bytes:
// how many there are, and how far apart they should be.
func (f *flat) gzipSpans(s *Spans, at, n int64) {
	head := f.bytes(at, recordsOff)
	if head == nil {
		return
	}
	have := int64(int32(binary.LittleEndian.Uint32(head)))
	s.Codec, s.SpanSize, s.At = toc.Gzip, int64(binary.LittleEndian.Uint64(head[4:])), at+recordsOff
	s.FirstLeftOut = n == recordsOff+(have-1)*recordSize
	switch {
	case have != int64(len(s.Digests)):
		f.fail("%d checkpoints, but digests of %d spans", have, len(s.Digests))
	case !s.FirstLeftOut && n != recordsOff+have*recordSize:
		f.fail("%d checkpoints in %d bytes", have, n)
	case s.SpanSize < 0 || s.SpanSize > MaxSpanSize:
		f.fail("spans of %d bytes", s.SpanSize)
	}
}

// storedSpans reads the spans of a layer that is not compressed, which a table
// in the vector at at says (ztoc/compression/fbs/zinfo.fbs, TarZinfo).
func (f *flat) storedSpans(s *Spans, at, n int64) {
	inner := &flat{size: n, pieces: []piece{{0, f.bytes(at, n)}}}
	t := inner.table(inner.follow(0))
	s.Codec, s.SpanSize = toc.Stored, t.i64(1)
	size := t.i64(2)
	switch {
	case f.err != nil:
	case inner.err != nil:
		f.fail("its checkpoints: %w", inner.err)
	case size != s.BlobSize:
		f.fail("its checkpoints are of %d bytes, the layer has %d", size, s.BlobSize)
	case s.SpanSize <= 0 || s.SpanSize > MaxSpanSize:
		f.fail("spans of %d bytes", s.SpanSize)
	case (size+s.SpanSize-1)/s.SpanSize != int64(len(s.Digests)):
		f.fail("%d bytes in spans of %d, but digests of %d spans", size, s.SpanSize, len(s.Digests))
	}
}

// parseDigest reads "sha256:" and 64 hexadecimal digits.
func parseDigest(s string, to *[sha256.Size]byte) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(digits) != hex.EncodedLen(len(to)) || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.Decode(to[:], []byte(digits))
	return err == nil
}
