package soci

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	flatbuffers "github.com/google/flatbuffers/go"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/zran"
)

// maxWritten bounds what is written: FlatBuffers end at 2 GiB, and the library
// panics there.
const maxWritten = 1<<31 - 1<<20

// Marshal writes a zTOC, with the checkpoints of its spans. The bytes are those
// that SOCI's tool writes of the same values: the same library makes them, in the
// same order (ztoc/ztoc_marshaler.go).
func Marshal(z *Ztoc, points []zran.Checkpoint) ([]byte, error) {
	s := z.Spans
	size := int64(len(z.Tool)) + int64(len(points))*recordSize + int64(s.Count())*88 + 4<<10
	for i := range z.Files {
		f := &z.Files[i]
		size += 300 + int64(len(f.Name)+len(f.Link)+len(f.Uname)+len(f.Gname))
		for _, r := range f.PAX {
			size += 40 + int64(len(r.Key)+len(r.Value))
		}
	}
	switch {
	case size > maxWritten:
		return nil, fmt.Errorf("write zTOC: more than %d bytes: %w", maxWritten, toc.ErrLimit)
	case s.Count() == 0 || s.Codec == toc.Gzip && len(points) != s.Count():
		return nil, fmt.Errorf("write zTOC: %d checkpoints, digests of %d spans: %w", len(points), s.Count(), toc.ErrInvalid)
	}
	b := flatbuffers.NewBuilder(int(size))
	version := b.CreateString(Version)
	tool := b.CreateString(z.Tool)
	files := writeFiles(b, z.Files)
	info := writeSpans(b, s, points)
	b.StartObject(6)
	b.PrependUOffsetTSlot(ztocVersion, version, 0)
	b.PrependUOffsetTSlot(ztocTool, tool, 0)
	b.PrependUOffsetTSlot(ztocTOC, files, 0)
	b.PrependInt64Slot(ztocCompressed, s.BlobSize, 0)
	b.PrependInt64Slot(ztocUncompressed, s.Uncompressed, 0)
	b.PrependUOffsetTSlot(ztocInfo, info, 0)
	b.Finish(b.EndObject())
	return b.FinishedBytes(), nil
}

// vector writes the offsets of what was written before.
func vector(b *flatbuffers.Builder, offsets []flatbuffers.UOffsetT) flatbuffers.UOffsetT {
	b.StartVector(4, len(offsets), 4)
	for _, off := range slices.Backward(offsets) {
		b.PrependUOffsetT(off)
	}
	return b.EndVector(len(offsets))
}

func writeFiles(b *flatbuffers.Builder, files []File) flatbuffers.UOffsetT {
	offsets := make([]flatbuffers.UOffsetT, len(files))
	for i := len(files) - 1; i >= 0; i-- {
		offsets[i] = writeFile(b, &files[i])
	}
	list := vector(b, offsets)
	b.StartObject(1)
	b.PrependUOffsetTSlot(0, list, 0)
	return b.EndObject()
}

func writeFile(b *flatbuffers.Builder, f *File) flatbuffers.UOffsetT {
	name, kind, link := b.CreateString(f.Name), b.CreateString(f.Type), b.CreateString(f.Link)
	uname, gname, modTime := b.CreateString(f.Uname), b.CreateString(f.Gname), b.CreateString(f.ModTime)
	records := slices.Clone(f.PAX)
	slices.SortFunc(records, func(x, y Record) int { return strings.Compare(x.Key, y.Key) })
	var list []flatbuffers.UOffsetT
	for _, r := range records {
		key, value := b.CreateString(r.Key), b.CreateString(r.Value)
		b.StartObject(2)
		b.PrependUOffsetTSlot(0, key, 0)
		b.PrependUOffsetTSlot(1, value, 0)
		list = append(list, b.EndObject())
	}
	pax := vector(b, list)
	b.StartObject(14)
	b.PrependUOffsetTSlot(fileName, name, 0)
	b.PrependUOffsetTSlot(fileType, kind, 0)
	b.PrependInt64Slot(fileOff, f.Off, 0)
	b.PrependInt64Slot(fileSize, f.Size, 0)
	b.PrependUOffsetTSlot(fileLink, link, 0)
	b.PrependInt64Slot(fileMode, f.Mode, 0)
	b.PrependUint32Slot(fileUID, f.UID, 0)
	b.PrependUint32Slot(fileGID, f.GID, 0)
	b.PrependUOffsetTSlot(fileUname, uname, 0)
	b.PrependUOffsetTSlot(fileGname, gname, 0)
	b.PrependUOffsetTSlot(fileModTime, modTime, 0)
	b.PrependInt64Slot(fileMajor, f.Major, 0)
	b.PrependInt64Slot(fileMinor, f.Minor, 0)
	b.PrependUOffsetTSlot(filePAX, pax, 0)
	return b.EndObject()
}

func writeSpans(b *flatbuffers.Builder, s *Spans, points []zran.Checkpoint) flatbuffers.UOffsetT {
	algorithm, data := int8(algorithmGzip), []byte(nil)
	if s.Codec == toc.Stored {
		algorithm, data = algorithmStored, storedRecord(s)
	} else {
		data = records(s, points)
	}
	checkpoints := b.CreateByteVector(data)
	digests := make([]flatbuffers.UOffsetT, s.Count())
	for i, d := range s.Digests {
		digests[i] = b.CreateString(digestText(d))
	}
	list := vector(b, digests)
	b.StartObject(4)
	b.PrependInt32Slot(infoMaxSpan, int32(s.Count()-1), 0)
	b.PrependUOffsetTSlot(infoDigests, list, 0)
	b.PrependUOffsetTSlot(infoCheckpoints, checkpoints, 0)
	b.PrependInt8Slot(infoAlgorithm, algorithm, algorithmGzip)
	return b.EndObject()
}

func digestText(d [sha256.Size]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }

// records is the vector of checkpoints of a gzip layer.
func records(s *Spans, points []zran.Checkpoint) []byte {
	if s.FirstLeftOut {
		points = points[1:]
	}
	data := make([]byte, 0, recordsOff+len(points)*recordSize)
	data = binary.LittleEndian.AppendUint32(data, uint32(s.Count()))
	data = binary.LittleEndian.AppendUint64(data, uint64(s.SpanSize))
	for _, c := range points {
		data = binary.LittleEndian.AppendUint64(data, uint64(c.In))
		data = binary.LittleEndian.AppendUint64(data, uint64(c.Out))
		data = append(data, c.Bits)
		window := c.Window[max(0, len(c.Window)-windowSize):]
		data = append(data, make([]byte, windowSize-len(window))...)
		data = append(data, window...)
	}
	return data
}

// storedRecord is the vector of checkpoints of a layer that is not compressed
// (ztoc/compression/tar_zinfo.go).
func storedRecord(s *Spans) []byte {
	const version = 2
	b := flatbuffers.NewBuilder(64)
	b.StartObject(3)
	b.PrependInt32Slot(0, version, 0)
	b.PrependInt64Slot(1, s.SpanSize, 0)
	b.PrependInt64Slot(2, s.BlobSize, 0)
	b.Finish(b.EndObject())
	return b.FinishedBytes()
}
