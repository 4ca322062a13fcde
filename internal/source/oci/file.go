package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/source"
)

var errNoOpenFile = errors.New("oci: internal error: Options.OpenFile is not set")

// section is a layer that lies in a file of this machine, as a part of it or alone.
type section struct {
	source.Blob        // the file
	place       string // of the image, for messages
	off, size   int64
	digest      digest.Digest
	life        context.Context // the image's
}

func (s *section) Size() int64 { return s.size }

// Sequential is what the file is, which is nothing of the kind.
func (s *section) Sequential() bool { return source.IsSequential(s.Blob) }

// Identity is the layer's size and digest.
func (s *section) Identity() source.Identity {
	return source.Identity{Size: s.size, Validator: s.digest.String()}
}

func (s *section) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(s, off, n); err != nil {
		return nil, fmt.Errorf("read [%d,+%d) of %s: %w", off, n, short(s.digest), err)
	}
	if s.life.Err() != nil {
		return nil, fmt.Errorf("read %s: %w", short(s.digest), os.ErrClosed)
	}
	body, err := s.Blob.ReadRange(ctx, s.off+off, n)
	if err != nil {
		return nil, err
	}
	return &sectionBody{body, ctx, s}, nil
}

// sectionBody is a body whose bytes nobody else has.
type sectionBody struct {
	io.ReadCloser
	ctx context.Context
	s   *section
}

// Refute implements source.Refutable.
func (b *sectionBody) Refute() bool {
	source.RefutedIn(b.ctx).Add(b.s, b.s.place)
	return false
}

// readAt reads a small part of a blob that is known to be there.
func readAt(ctx context.Context, b source.Blob, off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	r, err := b.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	data := make([]byte, n)
	_, err = io.ReadFull(r, data)
	return data, errors.Join(err, r.Close())
}

// readDocument reads a small file of this machine.
func readDocument(path string) (data []byte, err error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", source.ErrNotFound, err)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: %w", source.ErrDenied, err)
	case err != nil:
		return nil, err
	}
	data, err = io.ReadAll(io.LimitReader(f, jsonLimit+1))
	if err == nil && len(data) > jsonLimit {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrUnsupported, path, jsonLimit)
	}
	return data, errors.Join(err, f.Close())
}
