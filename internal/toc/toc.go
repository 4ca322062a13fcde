// Package toc holds the table of contents of a layer: what is in it and which
// bytes of the blob hold each file's data.
//
// Readers of a format (estargz, zstdchunked, tarscan) live in packages below
// and give every layer the same form, so that nothing above them knows formats.
// They feed a Builder, which cleans names, decides what duplicates mean and
// refuses what no honest tool writes; a TOC that a Builder has finished is valid,
// and only such a TOC is ever encoded, merged or mounted.
//
// What a TOC says and does not say:
//
//   - Directories that no entry names may be missing: a layer may hold a/b
//     without a. Whoever merges layers takes a from a lower layer or makes it up.
//   - A hard link may name an entry that this layer does not hold; then it is a
//     lower layer's. One that stands before its target names what lower layers have
//     there, and the target only where they have nothing: so it is when layers are
//     unpacked in order. A target that is itself a hard link comes after it.
//   - A range of a file that no chunk covers is a hole and reads as zeros.
//   - Two entries of one name: the last wins. A directory that follows a directory
//     replaces its metadata and keeps its children; whatever replaces a directory by
//     something else, or something else by anything, replaces all below it too, in
//     lower layers as well. A hard link made before its target was replaced keeps the
//     old target's data.
//   - The order of entries is that of the layer, but for hard links and markers that
//     have to come first. Files lie in the device in that order, Replaced ones
//     included.
//
// Nothing here reads a blob beyond the ranges that it is told to, logs, or keeps
// state.
package toc

import (
	"errors"
	"fmt"
)

// Type is the kind of an entry.
type Type uint8

// The types of entries. The numbers are part of the encoding.
const (
	// Regular is a file; its data is in Size and Chunks.
	Regular Type = iota + 1
	// Directory may come without one for its parents.
	Directory
	// Symlink has its target in Link, verbatim.
	Symlink
	// Hardlink is another name of the entry that Link names. The target's
	// metadata holds; the link's own is zero.
	Hardlink
	// Char, Block and Fifo are special files; the first two have Major and Minor.
	Char
	Block
	Fifo
	// Whiteout hides what lower layers have at Name and below. An entry of
	// that name in the same layer is not hidden.
	Whiteout
	// Opaque hides all that lower layers have below the directory Name, wherever
	// in the layer the marker stands.
	Opaque
	// Replaced is a regular file that a later entry of the layer replaces. It
	// has no name; it only keeps its place in the device, so that a file's place
	// is known when its data arrives, before the replacing entry.
	Replaced
)

var typeNames = [...]string{"", "regular file", "directory", "symlink", "hard link", "character device",
	"block device", "fifo", "whiteout", "opaque marker", "replaced file"}

// String is the type in words.
func (t Type) String() string {
	if t == 0 || int(t) >= len(typeNames) {
		return fmt.Sprintf("type %d", uint8(t))
	}
	return typeNames[t]
}

// Codec says how a compressed range is decoded.
type Codec uint8

// The codecs. The numbers are part of the encoding.
const (
	// Stored bytes are the data itself.
	Stored Codec = iota + 1
	// Gzip is one or more gzip members (RFC 1952).
	Gzip
	// Zstd is one or more Zstandard frames (RFC 8878), skippable ones among them.
	Zstd
)

// String is the codec's usual name.
func (c Codec) String() string {
	switch c {
	case Stored:
		return "stored"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// TOC is a layer's table of contents.
type TOC struct {
	// Entries in the layer's order.
	Entries []Entry
	// BlobSize is the size of the layer's blob as it lies in the registry.
	BlobSize int64
}

// Entry is one name with its metadata.
type Entry struct {
	// Name is the cleaned path: relative, without leading or trailing slash,
	// no empty, "." or ".." component. "" is the root. Bytes as they are in
	// the layer, which need not be UTF-8.
	Name string
	// Type says which of the fields below hold.
	Type Type
	// Mode has the permission, setuid, setgid and sticky bits of st_mode
	// (07777), nothing else.
	Mode uint32
	// UID and GID own the entry.
	UID, GID uint32
	// Sec and Nsec are the modification time since 1970; Nsec < 1e9 counts
	// forward, also before 1970.
	Sec  int64
	Nsec uint32
	// Major and Minor number the device of Char and Block.
	Major, Minor uint32
	// Link is a symlink's target, verbatim, or a hard link's cleaned target.
	Link string
	// Xattrs are sorted by name; no name occurs twice.
	Xattrs []Xattr
	// Size is a regular file's length.
	Size int64
	// Chunks of a regular file, in order of Off, without overlap.
	Chunks []Chunk
}

// Xattr is an extended attribute with its full name ("user.x") and raw value.
type Xattr struct {
	Name, Value string
}

// Chunk is where a range of a file's bytes comes from: decode the compressed
// range with Codec, skip Inner bytes, take Len.
type Chunk struct {
	// Off and Len are the range of the file. Len > 0.
	Off, Len int64
	// BlobOff and BlobLen are the compressed range in the blob. Several chunks
	// may share one range; ranges that are not the same do not overlap. A layer
	// that can only be decoded from its start has chunks whose range is all of it.
	BlobOff, BlobLen int64
	// Inner is the chunk's position in the range's decompressed bytes.
	Inner int64
	// Codec of the compressed range.
	Codec Codec
	// Digest of the Len bytes, "sha256:" and 64 hexadecimal digits, or "" where
	// the layer has none.
	Digest string
}

// Errors that callers tell apart with errors.Is. All of them are permanent.
var (
	// ErrNotFormat: the blob is not of the format asked for. Another reader may
	// know it, and tarscan knows every layer.
	ErrNotFormat = errors.New("not of this format")
	// ErrInvalid: the table of contents says something that no honest layer says.
	ErrInvalid = errors.New("invalid layer")
	// ErrLimit: the layer is larger than what is accepted.
	ErrLimit = errors.New("layer exceeds a limit")
	// ErrDigest: the bytes are not those that the digest names.
	ErrDigest = errors.New("digest mismatch")
)

// Limits of what is accepted. Beyond them a layer is refused with ErrLimit, so
// that what a stranger sends takes bounded memory and time.
const (
	// MaxEntries bounds the entries of a layer with the directories that their
	// paths imply, and separately its chunks.
	MaxEntries = 2_000_000
	// MaxText bounds the sum of all names, link targets and extended attributes.
	MaxText = 512 << 20
	// MaxName is the longest path in bytes, PATH_MAX without its NUL, and
	// MaxComponent the longest component, NAME_MAX (linux/limits.h). MaxName holds for
	// the targets of symlinks too.
	MaxName      = 4095
	MaxComponent = 255
	// MaxXattr is the longest value, and the longest sum of an entry's names
	// (XATTR_SIZE_MAX and XATTR_LIST_MAX, linux/limits.h).
	MaxXattr = 64 << 10
	// MaxDevice is the largest device: 2^32 blocks of 4096 bytes, which is what
	// the 32-bit block addresses of EROFS reach (fs/erofs/erofs_fs.h).
	MaxDevice = 1 << 44
	// MaxPacked and MaxJSON bound a table of contents that a stranger wrote, as it
	// lies in the blob and decompressed.
	MaxPacked = 64 << 20
	MaxJSON   = 256 << 20
)

// BlockSize is the alignment of a file in its layer's device.
const BlockSize = 4096

// HoldsPlace tells whether the entry takes part of the device.
func (e *Entry) HoldsPlace() bool {
	return e.Size > 0 && (e.Type == Regular || e.Type == Replaced)
}

// Extent is how many bytes of the device the entry takes: its size up to the
// next block, 0 where it holds no place.
func (e *Entry) Extent() int64 {
	if !e.HoldsPlace() {
		return 0
	}
	return (e.Size + BlockSize - 1) &^ (BlockSize - 1)
}

// DeviceSize is the sum of all extents.
func (t *TOC) DeviceSize() int64 {
	var sum int64
	for i := range t.Entries {
		sum += t.Entries[i].Extent()
	}
	return sum
}
