package soci

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/pax"
)

// chunkSize is the largest chunk that a file is cut into; tarscan's is the same,
// so that tables of contents are too.
const chunkSize = 4 << 20

// blockSize is that of headers and padding in a tar.
const blockSize = 512

// entryType is what the names of types mean of what a layer holds (ztoc/toc_builder.go, getType).
func entryType(name string) toc.Type {
	switch name {
	case "reg":
		return toc.Regular
	case "dir":
		return toc.Directory
	case "symlink":
		return toc.Symlink
	case "hardlink":
		return toc.Hardlink
	case "char":
		return toc.Char
	case "block":
		return toc.Block
	case "fifo":
		return toc.Fifo
	}
	return 0
}

// TOC is the layer's table of contents, as tarscan makes it but without digests:
// in a compressed layer, chunks say where their bytes lie when it is decoded from
// its start, and Reader.Covering how to begin there. toc.ErrNotFormat: the layer
// holds what a zTOC cannot say, and has to be scanned.
func (z *Ztoc) TOC() (*toc.TOC, error) {
	t, _, err := z.Contents()
	return t, err
}

// Contents are TOC, and the headers of the files in it that have a place in the device.
func (z *Ztoc) Contents() (*toc.TOC, *Headers, error) {
	b := toc.NewBuilder(z.Spans.BlobSize)
	b.Grow(len(z.Files))
	headers := new(Headers)
	var end int64
	for i := range z.Files {
		f := &z.Files[i]
		if err := z.add(b, headers, f, end); err != nil {
			return nil, nil, fmt.Errorf("zTOC: %.200q: %w", f.Name, err)
		}
		end = f.end()
	}
	t, err := b.Finish()
	if err != nil {
		return nil, nil, fmt.Errorf("zTOC: %w", err)
	}
	return t, headers, nil
}

// add adds f, whose header lies behind end.
func (z *Ztoc) add(b *toc.Builder, headers *Headers, f *File, end int64) error {
	e, err := f.entry()
	if err != nil {
		return err
	}
	data := f.dataSize()
	// A header lies before the data, after the padding of the file before.
	if f.Off%blockSize != 0 || f.Off-blockSize < end || data < 0 || f.Off > z.Spans.Uncompressed-data {
		return invalid("its data lie at [%d,+%d), after %d and in %d bytes", f.Off, data, end, z.Spans.Uncompressed)
	}
	at, err := b.Add(e)
	if err != nil || at < 0 || !b.Entry(at).HoldsPlace() {
		return err
	}
	if err := headers.add(f, end); err != nil {
		return err
	}
	for off := int64(0); off < data; off += chunkSize {
		if err := b.AddChunk(at, z.chunk(f.Off, off, min(data-off, chunkSize))); err != nil {
			return err
		}
	}
	return nil
}

// chunk is [off, off+n) of the file whose data begins at data.
func (z *Ztoc) chunk(data, off, n int64) toc.Chunk {
	c := toc.Chunk{Off: off, Len: n, Codec: z.Spans.Codec, BlobLen: z.Spans.BlobSize, Inner: data + off}
	if c.Codec == toc.Stored {
		c.BlobOff, c.BlobLen, c.Inner = data+off, n, 0
	}
	return c
}

// entry is the file in the model's form.
func (f *File) entry() (toc.Entry, error) {
	e := toc.Entry{Name: f.Name, Type: entryType(f.Type), Mode: uint32(f.Mode & 0o7777), UID: f.UID, GID: f.GID}
	records := make(map[string]string, len(f.PAX))
	for _, r := range f.PAX {
		if strings.HasPrefix(r.Key, "GNU.sparse.") {
			return e, fmt.Errorf("a sparse file: %w", toc.ErrNotFormat)
		}
		records[r.Key] = r.Value
	}
	switch e.Type {
	case 0:
		return e, invalid("type %.20q", f.Type)
	case toc.Regular:
		e.Size = f.Size
	case toc.Symlink, toc.Hardlink:
		e.Link = f.Link
	case toc.Char, toc.Block:
		if f.Major < 0 || f.Major > math.MaxUint32 || f.Minor < 0 || f.Minor > math.MaxUint32 {
			return e, invalid("device number %d:%d", f.Major, f.Minor)
		}
		e.Major, e.Minor = uint32(f.Major), uint32(f.Minor)
	}
	if f.ModTime == "" {
		return e, fmt.Errorf("a time that RFC 3339 cannot say: %w", toc.ErrNotFormat)
	}
	when, err := time.Parse(time.RFC3339Nano, f.ModTime)
	if err != nil {
		return e, invalid("time %.40q", f.ModTime)
	}
	e.Sec, e.Nsec = when.Unix(), uint32(when.Nanosecond())
	e.Xattrs, err = pax.Xattrs(records)
	return e, err
}
