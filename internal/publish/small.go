package publish

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// smallLayer is a layer without a zTOC: all of its blob, which has its digest.
type smallLayer struct {
	blob  []byte
	codec toc.Codec
	files []soci.File // name, type and link of its entries
}

// maxSmall bounds the layers that are read for what they have: index leaves out those
// that are smaller, unless it is told otherwise. maxUnpacked and maxEntries bound what
// they have.
const (
	maxSmall    = soci.DefaultMinLayerSize
	maxUnpacked = 1 << 30
	maxEntries  = 200_000
)

// read reads what the layer has, unless its zTOC says it.
func (l *OpenedLayer) read(ctx context.Context) error {
	if l.Ztoc != nil || l.small != nil {
		return nil
	}
	if l.Size > maxSmall {
		return fmt.Errorf("%w, and %d bytes are too many to look into", ErrNoZtoc, l.Size)
	}
	small := &smallLayer{codec: codecOf(l.Layer)}
	var err error
	if small.blob, err = readLayer(ctx, l.Layer); err != nil {
		return err
	}
	err = small.walk(ctx, func(h *tar.Header, _ io.Reader) (bool, error) {
		if len(small.files) == maxEntries {
			return false, fmt.Errorf("more than %d entries: %w", maxEntries, toc.ErrLimit)
		}
		small.files = append(small.files, soci.File{Name: h.Name, Link: h.Linkname, Type: kindOf(h)})
		return true, nil
	})
	if err != nil {
		return err
	}
	l.small = small
	return nil
}

// readLayer is all of a layer's blob, verified.
func readLayer(ctx context.Context, l oci.Layer) (data []byte, err error) {
	if l.Size == 0 {
		return nil, fmt.Errorf("no bytes: %w", toc.ErrInvalid)
	}
	blob, err := l.Blob(ctx)
	if err != nil {
		return nil, err
	}
	blob = retry.Wrap(blob, retry.Policy{})
	defer func() { err = errors.Join(err, blob.Close()) }()
	body, err := blob.ReadRange(ctx, 0, l.Size)
	if err != nil {
		return nil, err
	}
	data, err = io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	if l.Digest.Algorithm().FromBytes(data) != l.Digest {
		return nil, fmt.Errorf("it has other bytes: %w", toc.ErrDigest)
	}
	return data, nil
}

// walk calls visit for each entry until that says that it is enough.
func (s *smallLayer) walk(ctx context.Context, visit func(*tar.Header, io.Reader) (more bool, err error)) (err error) {
	var decoders toc.Decoders
	plain, err := decoders.Open(s.codec, bytes.NewReader(s.blob))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	bounded := &io.LimitedReader{R: plain, N: maxUnpacked}
	for r := tar.NewReader(bounded); ; {
		h, err := r.Next()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case bounded.N <= 0:
			return fmt.Errorf("more than %d bytes unpacked: %w", maxUnpacked, toc.ErrLimit)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, tar.ErrInsecurePath):
			return fmt.Errorf("read the layer: %w", err)
		}
		if more, err := visit(h, r); err != nil || !more {
			return err
		}
	}
}

// cat writes the data of entry i.
func (s *smallLayer) cat(ctx context.Context, out io.Writer, i int) error {
	return s.walk(ctx, func(_ *tar.Header, data io.Reader) (more bool, err error) {
		if i--; i < 0 {
			_, err = io.Copy(out, data)
		}
		return i >= 0, err
	})
}

// codecOf is what the image says that a layer is compressed with.
func codecOf(l oci.Layer) toc.Codec {
	switch {
	case strings.HasSuffix(l.MediaType, "zstd"):
		return toc.Zstd
	case strings.HasSuffix(l.MediaType, ".tar"):
		return toc.Stored
	}
	return toc.Gzip
}

// kindOf is the type of an entry in a zTOC's words, as far as they matter.
func kindOf(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return "reg"
	case tar.TypeDir:
		return "dir"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeLink:
		return "hardlink"
	}
	return "special file"
}
