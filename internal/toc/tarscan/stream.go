package tarscan

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"

	"github.com/lacunafs/lacuna/internal/toc"
)

// meter counts and digests what is read through it. Without a sum it only counts.
type meter struct {
	ctx context.Context
	r   io.Reader
	n   int64
	sum hash.Hash
}

func newMeter(ctx context.Context, r io.Reader) *meter {
	return &meter{ctx: ctx, r: r, sum: sha256.New()}
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.sum != nil {
		m.sum.Write(p[:n])
	}
	return n, err
}

func (m *meter) digest() string { return "sha256:" + hex.EncodeToString(m.sum.Sum(nil)) }

// bounded ends a stream with an error that decodes to more than it should.
type bounded struct {
	r      io.Reader
	packed *meter
	o      Options
	n      int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.o.MaxSize {
		return 0, fmt.Errorf("more than %d bytes uncompressed: %w", b.o.MaxSize, toc.ErrLimit)
	}
	if b.n > b.o.free && b.n/b.o.MaxRatio > b.packed.n {
		return 0, fmt.Errorf("%d bytes compressed are %d uncompressed: %w", b.packed.n, b.n, toc.ErrLimit)
	}
	return n, err
}

// sniff tells how a layer is compressed from its first bytes.
func sniff(in *bufio.Reader) (toc.Codec, error) {
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	is := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case is("\x1f\x8b\x08"):
		return toc.Gzip, nil
	case is("\x28\xb5\x2f\xfd"), len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18":
		return toc.Zstd, nil
	case is("BZh"), is("\xfd7zXZ\x00"):
		return 0, fmt.Errorf("compressed with bzip2 or xz, which layers are not: %w", toc.ErrInvalid)
	}
	return toc.Stored, nil
}

// decode opens the whole layer's decoded bytes.
func decode(codec toc.Codec, in *bufio.Reader) (io.ReadCloser, error) {
	if codec == toc.Gzip {
		return newMembers(in)
	}
	return new(toc.Decoders).Open(codec, in)
}

// members decodes gzip members one after the other. After the last one, only
// zeros may follow, as gzip(1) allows it: some tapes and tools pad.
type members struct {
	in  *bufio.Reader
	cur *gzip.Reader
}

func newMembers(in *bufio.Reader) (*members, error) {
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", noEOF(err))
	}
	z.Multistream(false)
	return &members{in, z}, nil
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.cur.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			if err != nil && !errors.Is(err, io.EOF) {
				err = fmt.Errorf("gzip: %w", err)
			} else {
				err = nil // the end comes again
			}
			return n, err
		}
		head, err := m.in.Peek(2)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if string(head) != "\x1f\x8b" {
			return 0, m.padding()
		}
		if err := m.cur.Reset(m.in); err != nil {
			return 0, fmt.Errorf("gzip: %w", noEOF(err))
		}
		m.cur.Multistream(false)
	}
}

func (m *members) padding() error {
	for {
		c, err := m.in.ReadByte()
		if err != nil {
			return err
		}
		if c != 0 {
			return fmt.Errorf("gzip: something else follows the last member: %w", toc.ErrInvalid)
		}
	}
}

func (m *members) Close() error { return nil }

// noEOF is err for a reader who wanted more.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
