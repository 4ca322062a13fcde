package toc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the largest zstd window that is decoded, which is the largest
// that the zstd program makes at any level (27 bits) and the bound of a decoder's memory.
const maxWindow = 128 << 20

// Decoders decode compressed ranges, and keep their buffers for the next one. The
// zero value is ready; it may be used concurrently.
type Decoders struct {
	gzip, zstd sync.Pool
}

// Open returns the decoded bytes of the compressed range that r holds: all members
// or frames of it, one after the other. It reads ahead in r, which therefore ends
// where the range does. Memory is bounded whatever the bytes are; how much
// comes out is not, so the caller reads only what it wants. What a range of
// wrong bytes gives is an error or wrong bytes. The caller closes the reader, which
// does not close r.
func (d *Decoders) Open(c Codec, r io.Reader) (io.ReadCloser, error) {
	switch c {
	case Stored:
		return io.NopCloser(r), nil
	case Gzip:
		return d.openGzip(r)
	case Zstd:
		return d.openZstd(r)
	}
	return nil, fmt.Errorf("decode: %s: %w", c, ErrInvalid)
}

// gzipDecoder is a pooled one; in is the buffer it reads from.
type gzipDecoder struct {
	*gzip.Reader
	in   *bufio.Reader
	pool *sync.Pool
}

func (d *Decoders) openGzip(r io.Reader) (io.ReadCloser, error) {
	g, ok := d.gzip.Get().(*gzipDecoder)
	if !ok {
		g = &gzipDecoder{Reader: new(gzip.Reader), in: bufio.NewReaderSize(nil, 32<<10)}
	}
	g.in.Reset(r)
	if err := g.Reset(g.in); err != nil {
		d.gzip.Put(g)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // no member at all
		}
		return nil, fmt.Errorf("decode gzip: %w", err)
	}
	g.pool = &d.gzip
	return &pooled{g, g.release, "gzip"}, nil
}

func (g *gzipDecoder) release() {
	g.in.Reset(nil)
	g.pool.Put(g)
}

func (d *Decoders) openZstd(r io.Reader) (io.ReadCloser, error) {
	z, ok := d.zstd.Get().(*zstd.Decoder)
	if !ok {
		var err error
		// With one goroutine it decodes in the caller's, and leaves nothing behind.
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("decode zstd: %w", err)
		}
	}
	if err := z.Reset(r); err != nil {
		d.zstd.Put(z)
		return nil, fmt.Errorf("decode zstd: %w", err)
	}
	return &pooled{z, func() {
		if z.Reset(nil) == nil {
			d.zstd.Put(z)
		}
	}, "zstd"}, nil
}

// pooled is a decoder in use. Its errors say which codec they are of.
type pooled struct {
	r       io.Reader
	release func()
	codec   string
}

func (p *pooled) Read(b []byte) (int, error) {
	if p.r == nil {
		return 0, fmt.Errorf("decode %s: %w", p.codec, os.ErrClosed)
	}
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("decode %s: %w", p.codec, err)
	}
	return n, err
}

// Close gives the decoder back. It may be called more than once.
func (p *pooled) Close() error {
	if p.r != nil {
		p.r = nil
		p.release()
	}
	return nil
}
