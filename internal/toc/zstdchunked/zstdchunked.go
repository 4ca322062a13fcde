// Package zstdchunked reads the table of contents of zstd:chunked layers, as
// podman, buildah and skopeo make them, and stargz-snapshotter.
//
// Such a layer is an ordinary zstd layer whose every chunk of a file is a frame
// of its own. After the data follow skippable frames (RFC 8878, section 3.1.2),
// which decoders ignore: the JSON table of contents, compressed; with some writers a
// "tar-split"; and a footer that says where the first one lies. Annotations in the
// manifest say so too: then one request reads the table and nothing else.
// (containers/storage, pkg/chunked/internal/minimal; stargz-snapshotter,
// estargz/zstdchunked.)
//
// The table of contents is the authority for what the layer holds. The tar-split
// is never read, nor are the tar headers between the data.
package zstdchunked

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/jtoc"
)

// Names of a layer's annotations end like this; containers/storage and
// stargz-snapshotter put different words before it.
const (
	// checksum is the digest of the compressed table of contents.
	checksum = "zstd-chunked.manifest-checksum"
	// position is "offset:compressed length:length:type" of it.
	position = "zstd-chunked.manifest-position"
	// tocDigest is stargz-snapshotter's digest of the JSON.
	tocDigest = "containerd.io/snapshot/stargz/toc.digest"
)

// annotation returns the value of a layer's annotation under either name.
func annotation(annotations map[string]string, name string) string {
	for _, prefix := range []string{"io.github.containers.", "io.containers."} {
		if v := annotations[prefix+name]; v != "" {
			return v
		}
	}
	return ""
}

// Trust is what a layer's annotations say that Read verifies its table of contents
// by, and where that lies; empty: nothing, and it is not verified.
func Trust(annotations map[string]string) string {
	packed, text := annotation(annotations, checksum), annotations[tocDigest]
	if packed == "" && text == "" {
		return ""
	}
	return fmt.Sprintf("%q %q %q", packed, text, annotation(annotations, position))
}

const (
	frameHeader = 8 // of a skippable frame: magic number and length
	typeCRFS    = 1 // the one form of the JSON that there is
)

// place is where the table of contents lies.
type place struct{ off, packed, size, form uint64 }

// Read reads the layer's table of contents. It is verified where the layer's
// annotations have its checksum, and another one is toc.ErrDigest; then all data
// has digests, too. A layer that neither annotations nor a footer call
// zstd:chunked is toc.ErrNotFormat.
func Read(ctx context.Context, l *toc.Layer) (*toc.Reading, error) {
	r, err := read(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("zstd:chunked: %w", err)
	}
	return r, nil
}

func read(ctx context.Context, l *toc.Layer) (*toc.Reading, error) {
	at, err := find(ctx, l)
	if err != nil {
		return nil, err
	}
	blob := uint64(l.Blob.Size())
	switch {
	case at.form != typeCRFS:
		return nil, fmt.Errorf("table of contents of type %d: %w", at.form, toc.ErrNotFormat)
	case at.packed > toc.MaxPacked || at.size > toc.MaxJSON:
		return nil, fmt.Errorf("table of contents of %d bytes, %d compressed: %w", at.size, at.packed, toc.ErrLimit)
	case at.off < frameHeader || at.packed == 0 || at.off > math.MaxInt64-at.packed || at.off+at.packed > blob:
		return nil, fmt.Errorf("table of contents at %d+%d of %d bytes: %w", at.off, at.packed, blob, toc.ErrInvalid)
	}
	return readAt(ctx, l, at)
}

func readAt(ctx context.Context, l *toc.Layer, at place) (_ *toc.Reading, err error) {
	r, err := l.Open(ctx, int64(at.off), int64(at.packed))
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	wantPacked, wantText := annotation(l.Annotations, checksum), l.Annotations[tocDigest]
	packedSum, textSum := sha256.New(), sha256.New()
	packed := io.TeeReader(r, packedSum)
	var decoders toc.Decoders
	text, err := decoders.Open(toc.Zstd, packed)
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	defer func() { err = errors.Join(err, text.Close()) }()
	t, err := jtoc.Read(io.TeeReader(text, textSum), jtoc.Layout{
		BlobSize: l.Blob.Size(), DataEnd: int64(at.off) - frameHeader, Packed: int64(at.packed),
		Codec: toc.Zstd, NeedDigests: wantPacked != "" || wantText != "",
	})
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	got := "sha256:" + hex.EncodeToString(packedSum.Sum(nil))
	for want, got := range map[string]string{
		wantPacked: got,
		wantText:   "sha256:" + hex.EncodeToString(textSum.Sum(nil)),
	} {
		if want != "" && want != got {
			return nil, fmt.Errorf("table of contents is %s, the manifest says %.100q: %w", got, want, toc.ErrDigest)
		}
	}
	return &toc.Reading{TOC: t, Digest: got, Verified: wantPacked != "" || wantText != ""}, nil
}

// find says where the table of contents lies, from the annotations or else from
// the footer.
func find(ctx context.Context, l *toc.Layer) (place, error) {
	if given := annotation(l.Annotations, position); given != "" {
		return parsePosition(given)
	}
	tail, err := l.Tail(ctx, footerSizes()[0]+frameHeader)
	if err != nil {
		return place{}, err
	}
	return parseFooter(tail)
}

func parsePosition(s string) (place, error) {
	parts := strings.Split(s, ":")
	var v [4]uint64
	if len(parts) != len(v) {
		return place{}, fmt.Errorf("position %.100q: %w", s, toc.ErrInvalid)
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 63)
		if err != nil {
			return place{}, fmt.Errorf("position %.100q: %w", s, toc.ErrInvalid)
		}
		v[i] = n
	}
	return place{v[0], v[1], v[2], v[3]}, nil
}

// footerSizes are those in use: with a tar-split, and without. The first four
// numbers are the same ones.
func footerSizes() []int64 { return []int64{64, 56, 40} }

// parseFooter reads the skippable frame at the end of tail.
func parseFooter(tail []byte) (place, error) {
	for _, size := range footerSizes() {
		b, ok := lastBytes(tail, size+frameHeader)
		if !ok || binary.LittleEndian.Uint32(b) != 0x184D2A50 || int64(binary.LittleEndian.Uint32(b[4:])) != size {
			continue
		}
		b = b[frameHeader:]
		// The first is containers/storage's, the second stargz-snapshotter's.
		if m := b[size-8:]; !bytes.Equal(m, []byte("GNUlInUx")) && !bytes.Equal(m, []byte("GnUlInUx")) {
			continue
		}
		at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		return place{at(0), at(1), at(2), at(3)}, nil
	}
	return place{}, fmt.Errorf("no footer: %w", toc.ErrNotFormat)
}

func lastBytes(b []byte, n int64) ([]byte, bool) {
	if int64(len(b)) < n {
		return nil, false
	}
	return b[int64(len(b))-n:], true
}
