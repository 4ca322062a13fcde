// Package soci reads and writes the indices that the SOCI snapshotter made for
// plain gzip layers: zTOCs, which say what files a layer holds and where gzip can be
// begun in its middle, and the manifests that list them.
//
// A zTOC is a FlatBuffer (soci-snapshotter, ztoc/ztoc.fbs) of two parts. The
// metadata are the list of files and the digests of the layer's spans; Open reads
// them, in two or three requests, and nothing else. The checkpoints are one vector,
// most of the blob: for each span where it begins and the 32 KiB before it.
// Reader reads them when a span is first needed.
//
// What a zTOC has of each tar header is what archive/tar made of it, with all PAX
// records: times with their fractions, extended attributes, owners, devices.
// What it has not:
//
//   - Sparse files. Their size is the one with holes, and where the data lies
//     is not said. TOC is toc.ErrNotFormat then, and tarscan reads the layer.
//   - Times before the year 0 or after 9999, and owners above 2^32-1. The first are
//     empty, which is toc.ErrNotFormat too; the second cannot be seen.
//   - Where the uncompressed layer ends, past the end of its archive.
//
// So a table of contents that is made here is that of tarscan, without digests of
// chunks: a mount is equal to the flattened tree, whichever was read.
//
// What is to be trusted: a zTOC is named by the digest of all its bytes, so what
// is read of it in parts is only the registry's word. Reader.Verify reads the
// rest and says whether all that was used belongs to that digest. The digests
// of spans are of compressed bytes; that these decode to what was indexed
// depends on the checkpoints.
package soci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Version is the one version of zTOCs (ztoc/ztoc.go, Version09).
const Version = "0.9"

// Limits of what is accepted, beside those of package toc.
const (
	// MaxMetadata bounds a zTOC without its checkpoints: some 190 bytes a file.
	MaxMetadata = toc.MaxJSON
	// MaxSpans bounds the spans of a layer: 4 TiB of spans of the usual size.
	MaxSpans = 1 << 20
	// MaxSpanSize bounds the distance that checkpoints are said to have.
	MaxSpanSize = 1 << 30
)

// DefaultSpanSize and DefaultMinLayerSize are SOCI's (soci/soci_index.go,
// defaultSpanSize, defaultMinLayerSize). Layers below the latter get no zTOC.
const (
	DefaultSpanSize     = 4 << 20
	DefaultMinLayerSize = 10 << 20
)

// windowSize is what deflate may refer back to (RFC 1951, section 2).
const windowSize = 32 << 10

// maxRatio is more than deflate compresses: 258 bytes for two codes of one bit
// (RFC 1951, section 3.2.5).
const maxRatio = 1032

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, toc.ErrInvalid)...)
}

// read reads the range [off, off+n) of a blob.
func read(ctx context.Context, b toc.Blob, off, n int64) ([]byte, error) {
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
