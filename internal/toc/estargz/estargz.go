// Package estargz reads the table of contents of eStargz layers, and of the
// stargz layers that they come from.
//
// Such a layer is an ordinary gzip layer whose every chunk of a file is a gzip
// member of its own. Its last member is empty and says in its header where the table of
// contents begins, which is a member too: a tar with one file of JSON. One request
// reads both, or two where the table is larger than what a Layer keeps of its end.
// (stargz-snapshotter, docs/estargz.md; estargz/types.go and gzip.go.)
//
// The JSON has times in whole seconds, and names that are not UTF-8 as its writer put
// them, mostly with U+FFFD for each wrong byte; that is the format's loss, and who reads
// the table of contents decides what to do about such names.
package estargz

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/jtoc"
)

// TOCDigest is the annotation of a layer in its manifest that names the digest of
// the JSON (estargz/types.go, TOCJSONDigestAnnotation).
const TOCDigest = "containerd.io/snapshot/stargz/toc.digest"

// Trust is what a layer's annotations say that Read verifies its table of contents
// by; empty: nothing, and it is not verified.
func Trust(annotations map[string]string) string { return annotations[TOCDigest] }

const (
	tocName = "stargz.index.json"
	magic   = "STARGZ"
	// hexDigits of the offset stand before the magic, in the header's extra field.
	hexDigits = 16
)

// footer is one of the forms of the last member.
type footer struct {
	size int64
	// extra is what stands before the offset: the gzip header (RFC 1952,
	// section 2.3) with the length of the extra field and, in it, its subfield's.
	extra string
	at    int // where extra stands
}

// The header's flags say only that there is an extra field; its time and system
// are not looked at.
const gzipStart = "\x1f\x8b\x08\x04"

func footers() []footer {
	return []footer{
		{size: 51, at: 10, extra: "\x1a\x00SG\x16\x00"},
		{size: 47, at: 10, extra: "\x16\x00"}, // stargz
	}
}

// Read reads the layer's table of contents. It is verified where the layer's
// annotations have TOCDigest, and another one is toc.ErrDigest; then all data has
// digests, too. A layer without the footer is toc.ErrNotFormat.
func Read(ctx context.Context, l *toc.Layer) (*toc.Reading, error) {
	r, err := read(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	return r, nil
}

func read(ctx context.Context, l *toc.Layer) (_ *toc.Reading, err error) {
	tail, err := l.Tail(ctx, footers()[0].size)
	if err != nil {
		return nil, err
	}
	at, n, err := position(tail, l.Blob.Size())
	if err != nil {
		return nil, err
	}
	packed, err := l.Open(ctx, at, n)
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	var decoders toc.Decoders
	member, err := decoders.Open(toc.Gzip, packed)
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	defer func() { err = errors.Join(err, member.Close()) }()
	text, err := jsonText(member)
	if err != nil {
		return nil, err
	}
	want := l.Annotations[TOCDigest]
	sum := sha256.New()
	t, err := jtoc.Read(io.TeeReader(text, sum), jtoc.Layout{
		BlobSize: l.Blob.Size(), DataEnd: at, Packed: n, Codec: toc.Gzip, NeedDigests: want != "",
	})
	if err != nil {
		return nil, err
	}
	got := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if want != "" && got != want {
		return nil, fmt.Errorf("table of contents is %s, the manifest says %.100q: %w", got, want, toc.ErrDigest)
	}
	return &toc.Reading{TOC: t, Digest: got, Verified: want != ""}, nil
}

// position finds the table of contents through the footer at the end of tail.
func position(tail []byte, blob int64) (off, n int64, err error) {
	for _, f := range footers() {
		if int64(len(tail)) < f.size {
			continue
		}
		b := string(tail[int64(len(tail))-f.size:])
		start := f.at + len(f.extra)
		end := start + hexDigits + len(magic)
		if b[:len(gzipStart)] != gzipStart || b[f.at:start] != f.extra || b[start+hexDigits:end] != magic {
			continue
		}
		at, err := strconv.ParseUint(b[start:start+hexDigits], 16, 63)
		if err != nil {
			return 0, 0, fmt.Errorf("footer: offset %q: %w", b[start:start+hexDigits], toc.ErrInvalid)
		}
		off, n = int64(at), blob-f.size-int64(at)
		switch {
		case off == 0 || n <= 0:
			return 0, 0, fmt.Errorf("footer: table of contents at %d of %d bytes: %w", off, blob, toc.ErrInvalid)
		case n > toc.MaxPacked:
			return 0, 0, fmt.Errorf("table of contents of %d compressed bytes: %w", n, toc.ErrLimit)
		}
		return off, n, nil
	}
	return 0, 0, fmt.Errorf("no footer: %w", toc.ErrNotFormat)
}

// jsonText is the file in the tar that the member holds.
func jsonText(member io.Reader) (io.Reader, error) {
	// A tar header says its size; what comes before is bounded by archive/tar.
	files := tar.NewReader(member)
	h, err := files.Next()
	switch {
	case err != nil:
		return nil, fmt.Errorf("table of contents: %w", err)
	case path.Clean(h.Name) != tocName || h.Typeflag != tar.TypeReg:
		return nil, fmt.Errorf("table of contents is called %.200q: %w", h.Name, toc.ErrInvalid)
	case h.Size > toc.MaxJSON:
		return nil, fmt.Errorf("table of contents of %d bytes: %w", h.Size, toc.ErrLimit)
	}
	return files, nil
}
