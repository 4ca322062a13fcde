// Package jtoc reads the JSON table of contents that eStargz and zstd:chunked
// share: both go back to CRFS, and differ in what holds the JSON and in a few members.
//
// The text is read as a stream, strictly, in memory that grows with what is kept
// of it alone. A member that is given twice is refused: two readers of such a text
// could see two layers. encoding/json would take either, and names in any case.
package jtoc

import (
	"io"
	"math"
	"slices"
	"time"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Layout is what the format around the JSON says of the blob.
type Layout struct {
	// BlobSize of the whole layer, and DataEnd, where its data ends.
	BlobSize, DataEnd int64
	// Packed is the size of the compressed JSON, from which the number of its
	// entries is guessed; 0 where it is not known.
	Packed int64
	// Codec of the chunks.
	Codec toc.Codec
	// NeedDigests refuses chunks without a digest: in a table of contents that
	// is verified itself, data without one would be trusted for nothing.
	NeedDigests bool
}

// reader turns the JSON's entries into a TOC.
type reader struct {
	Layout
	b *toc.Builder
	// files are the indices of entries with chunks, and ends where the last
	// chunk's compressed range ends, 0 where the text does not say.
	files []int
	ends  []int64
	// offsets are where compressed ranges begin.
	offsets []int64

	last   int  // the regular file that chunks may follow, -1 if none
	left   bool // the file before is left out, and its chunks with it
	name   string
	digest string // of that whole file
	done   int64  // bytes of it that chunks have told of
}

// landmarks are eStargz's own: they tell a reader where files end that are worth
// prefetching (estargz/types.go), and are no part of the image.
var landmarks = []string{".prefetch.landmark", ".no.prefetch.landmark"}

// Read reads JSON text from r to its end.
func Read(r io.Reader, layout Layout) (*toc.TOC, error) {
	x := &reader{Layout: layout, b: toc.NewBuilder(layout.BlobSize), last: -1}
	// A digest of 32 bytes does not compress.
	x.b.Grow(int(min(layout.Packed, toc.MaxPacked) / 50))
	if err := newLexer(r, toc.MaxJSON).document(x.entry); err != nil {
		return nil, err
	}
	if err := x.endFile(); err != nil {
		return nil, err
	}
	if err := x.setEnds(); err != nil {
		return nil, err
	}
	return x.b.Finish()
}

func (x *reader) entry(e *entry) error {
	if e.kind == "chunk" {
		return x.chunk(e)
	}
	if err := x.endFile(); err != nil {
		return err
	}
	out, err := e.toc()
	if err != nil {
		return err
	}
	name, err := toc.CleanName(e.name)
	if err != nil {
		return err
	}
	i := -1
	if !slices.Contains(landmarks, name) {
		if i, err = x.b.Add(out); err != nil {
			return err
		}
	}
	x.left = i < 0 || x.b.Entry(i).Type != out.Type
	if x.left && e.offset > 0 && e.offset < x.DataEnd {
		x.offsets = append(x.offsets, e.offset) // data before it ends here
	}
	if x.left || out.Type != toc.Regular || out.Size == 0 {
		return nil
	}
	x.last, x.name, x.digest, x.done = i, name, e.digest, 0
	x.files = append(x.files, i)
	x.ends = append(x.ends, e.endOffset)
	return x.addChunk(e)
}

// chunk takes a chunk that follows its file.
func (x *reader) chunk(e *entry) error {
	if x.left {
		return nil
	}
	if name, err := toc.CleanName(e.name); err != nil || x.last < 0 || name != x.name {
		return invalid("a chunk of %.200q where none of it belongs", e.name)
	}
	return x.addChunk(e)
}

func (x *reader) addChunk(e *entry) error {
	size := x.b.Entry(x.last).Size
	n := e.chunkSize
	if n == 0 {
		n = size - e.chunkOffset
	}
	if e.chunkOffset != x.done || n <= 0 || n > size-x.done {
		return invalid("%.200q: chunk [%d,+%d) after %d bytes of %d", x.name, e.chunkOffset, n, x.done, size)
	}
	x.done += n
	switch {
	// Every layer begins with a header.
	case e.offset < 0 || e.innerOffset < 0 || (e.offset == 0 && e.innerOffset == 0) || e.offset >= x.DataEnd:
		return invalid("%.200q: data at %d+%d of %d", x.name, e.offset, e.innerOffset, x.DataEnd)
	case e.endOffset != 0 && e.endOffset <= e.offset:
		return invalid("%.200q: data from %d to %d", x.name, e.offset, e.endOffset)
	}
	x.offsets = append(x.offsets, e.offset)
	switch e.chunkType {
	case "zeros":
		return nil // a hole
	case "":
	default:
		return invalid("%.200q: chunk type %.200q", x.name, e.chunkType)
	}
	digest := e.chunkDigest
	if digest == "" && n == size {
		digest = x.digest
	}
	if digest == "" && x.NeedDigests {
		return invalid("%.200q: chunk without a digest", x.name)
	}
	return x.b.AddChunk(x.last, toc.Chunk{
		Off: e.chunkOffset, Len: n, BlobOff: e.offset, Inner: e.innerOffset, Codec: x.Codec, Digest: digest,
	})
}

// endFile sees to it that the chunks of the file in hand are all of it.
func (x *reader) endFile() error {
	if x.last < 0 {
		return nil
	}
	if size := x.b.Entry(x.last).Size; x.done != size {
		return invalid("%.200q: chunks of %d bytes, its size is %d", x.name, x.done, size)
	}
	x.last = -1
	return nil
}

// setEnds gives each chunk the end of its compressed range: where the next one
// begins, the end that the text gives for the file, or that of all data.
func (x *reader) setEnds() error {
	if !slices.IsSorted(x.offsets) {
		slices.Sort(x.offsets)
	}
	x.offsets = append(slices.Compact(x.offsets), x.DataEnd)
	for k, i := range x.files {
		chunks := x.b.Entry(i).Chunks
		for j := range chunks {
			c := &chunks[j]
			at, _ := slices.BinarySearch(x.offsets, c.BlobOff)
			end := x.offsets[at+1]
			if given := x.ends[k]; given != 0 && given < end && given > c.BlobOff {
				end = given
			}
			c.BlobLen = end - c.BlobOff
		}
		if x.ends[k] > x.DataEnd {
			return invalid("data up to %d of %d", x.ends[k], x.DataEnd)
		}
	}
	return nil
}

// toc is the entry in the model's form, without chunks.
func (e *entry) toc() (toc.Entry, error) {
	out := toc.Entry{Name: e.name, Mode: uint32(e.mode & 0o7777), Xattrs: e.xattrs}
	switch e.kind {
	case "reg":
		out.Type, out.Size = toc.Regular, e.size
	case "dir":
		out.Type = toc.Directory
	case "symlink":
		out.Type, out.Link = toc.Symlink, e.linkName
	case "hardlink":
		out.Type, out.Link = toc.Hardlink, e.linkName
	case "char":
		out.Type = toc.Char
	case "block":
		out.Type = toc.Block
	case "fifo":
		out.Type = toc.Fifo
	default:
		return out, invalid("%.200q: type %.200q", e.name, e.kind)
	}
	for _, v := range []int64{e.uid, e.gid, e.devMajor, e.devMinor} {
		if v < 0 || v > math.MaxUint32 {
			return out, invalid("%.200q: owner or device number %d", e.name, v)
		}
	}
	out.UID, out.GID = uint32(e.uid), uint32(e.gid)
	if out.Type == toc.Char || out.Type == toc.Block {
		out.Major, out.Minor = uint32(e.devMajor), uint32(e.devMinor)
	}
	if e.modTime != "" {
		t, err := time.Parse(time.RFC3339, e.modTime)
		if err != nil {
			return out, invalid("%.200q: time %.200q", e.name, e.modTime)
		}
		if !t.IsZero() { // which writers in Go mean by no time
			out.Sec, out.Nsec = t.Unix(), uint32(t.Nanosecond())
		}
	}
	return out, nil
}
