package toc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// Blob is a layer as it lies in the registry. What ReadRange returns has exactly
// n bytes or ends with an error.
type Blob interface {
	Size() int64
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Read reads a layer's table of contents, or says ErrNotFormat. Every reader of
// a format that has one has this form.
type Read func(ctx context.Context, l *Layer) (*Reading, error)

// Reading is what a reader found.
type Reading struct {
	// TOC of the layer.
	TOC *TOC
	// Digest of the bytes of the table of contents as the format defines it.
	Digest string
	// Verified is true where the manifest names Digest. Otherwise the table of
	// contents is only as good as the registry's word for it.
	Verified bool
}

// tailSize is how much of a blob's end is read at once. Tables of contents
// compress to some 40 to 60 bytes a file, so this one holds those of layers of up to
// about 4,000 files.
const tailSize = 256 << 10

// Layer is a blob with what its manifest says of it. It keeps the end of the
// blob once that is read, so that one request serves the footer, most tables of contents,
// and the readers of other formats. It is for one goroutine.
type Layer struct {
	Blob Blob
	// Annotations of the layer's descriptor in the manifest.
	Annotations map[string]string

	tail    []byte
	tailOff int64
}

// Tail returns the last n bytes of the blob, or all of one that is smaller.
// The first call is one request.
func (l *Layer) Tail(ctx context.Context, n int64) ([]byte, error) {
	if n > tailSize {
		return nil, fmt.Errorf("toc: internal error: tail of %d bytes", n)
	}
	size := l.Blob.Size()
	if l.tail == nil && size > 0 {
		take := min(size, tailSize)
		r, err := l.Blob.ReadRange(ctx, size-take, take)
		if err != nil {
			return nil, fmt.Errorf("read end of layer: %w", err)
		}
		tail := make([]byte, take)
		_, err = io.ReadFull(r, tail)
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, fmt.Errorf("read end of layer: %w", err)
		}
		l.tail, l.tailOff = tail, size-take
	}
	return l.tail[max(0, int64(len(l.tail))-n):], nil
}

// Open returns a reader of the range [off, off+n). What is known of the end of
// the blob is not read again: that makes no request, or one for the bytes before.
// The reader ends early with an error if the source does.
func (l *Layer) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	size := l.Blob.Size()
	if off < 0 || n <= 0 || off > size-n {
		return nil, fmt.Errorf("range [%d,+%d) of a layer of %d bytes: %w", off, n, size, ErrInvalid)
	}
	end := off + n
	if l.tail == nil || end <= l.tailOff {
		return l.Blob.ReadRange(ctx, off, n)
	}
	known := l.tail[max(0, off-l.tailOff) : end-l.tailOff]
	if off >= l.tailOff {
		return io.NopCloser(bytes.NewReader(known)), nil
	}
	r, err := l.Blob.ReadRange(ctx, off, l.tailOff-off)
	if err != nil {
		return nil, err
	}
	return &joined{io.MultiReader(r, bytes.NewReader(known)), r}, nil
}

type joined struct {
	io.Reader
	io.Closer
}
