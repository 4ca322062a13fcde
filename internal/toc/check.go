package toc

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
)

// checkEntry says what is wrong with e by itself. Its name is clean, and its
// digests need no check where they are made of bytes.
func checkEntry(e *Entry, digests bool) error {
	if err := e.check(digests); err != nil {
		return fmt.Errorf("%s %s: %w", e.Type, quote(e.Name), err)
	}
	return nil
}

func (e *Entry) check(digests bool) error {
	switch {
	case e.Type < Regular || e.Type > Replaced:
		return fmt.Errorf("unknown type: %w", ErrInvalid)
	case e.Name == "" && e.Type != Directory && e.Type != Opaque && e.Type != Replaced:
		return fmt.Errorf("the root is a directory: %w", ErrInvalid)
	case e.Mode&^uint32(0o7777) != 0:
		return fmt.Errorf("permissions %#o: %w", e.Mode, ErrInvalid)
	case e.Nsec >= 1e9:
		return fmt.Errorf("%d nanoseconds: %w", e.Nsec, ErrInvalid)
	}
	if e.Type == Replaced && e.Name != "" {
		return fmt.Errorf("it has a name: %w", ErrInvalid)
	}
	if err := e.checkFields(); err != nil {
		return err
	}
	if err := e.checkXattrs(); err != nil {
		return err
	}
	return e.checkChunks(digests)
}

// checkFields checks what only some types have.
func (e *Entry) checkFields() error {
	device := e.Type == Char || e.Type == Block
	switch {
	// 12 and 20 bits: MINORBITS in include/linux/kdev_t.h.
	case e.Major >= 1<<12 || e.Minor >= 1<<20 || (!device && (e.Major != 0 || e.Minor != 0)):
		return fmt.Errorf("device number %d:%d: %w", e.Major, e.Minor, ErrInvalid)
	case (e.Type == Symlink || e.Type == Hardlink) == (e.Link == ""):
		return fmt.Errorf("link target %s: %w", quote(e.Link), ErrInvalid)
	case len(e.Link) > MaxName || strings.IndexByte(e.Link, 0) >= 0:
		return fmt.Errorf("link target of %d bytes that no link can have: %w", len(e.Link), ErrInvalid)
	case e.Type == Hardlink && e.Link == e.Name:
		return fmt.Errorf("links to itself: %w", ErrInvalid)
	case e.Size < 0:
		return fmt.Errorf("size %d: %w", e.Size, ErrInvalid)
	case e.Size > MaxDevice:
		return fmt.Errorf("size %d: %w", e.Size, ErrLimit)
	case e.Size != 0 && e.Type != Regular && e.Type != Replaced:
		return fmt.Errorf("size %d: %w", e.Size, ErrInvalid)
	}
	return nil
}

func (e *Entry) checkXattrs() error {
	names := 0
	for i, x := range e.Xattrs {
		names += len(x.Name) + 1
		switch {
		case x.Name == "" || len(x.Name) > 255 || strings.IndexByte(x.Name, 0) >= 0: // XATTR_NAME_MAX
			return fmt.Errorf("extended attribute name %s: %w", quote(x.Name), ErrInvalid)
		case len(x.Value) > MaxXattr:
			return fmt.Errorf("extended attribute %s of %d bytes: %w", x.Name, len(x.Value), ErrLimit)
		case i > 0 && e.Xattrs[i-1].Name >= x.Name:
			return fmt.Errorf("extended attribute %s twice or out of order: %w", x.Name, ErrInvalid)
		}
	}
	if names > MaxXattr {
		return fmt.Errorf("%d bytes of names of extended attributes: %w", names, ErrLimit)
	}
	return nil
}

func (e *Entry) checkChunks(digests bool) error {
	if len(e.Chunks) > 0 && e.Size == 0 {
		return fmt.Errorf("chunks of an empty file: %w", ErrInvalid)
	}
	var end int64
	for i := range e.Chunks {
		c := &e.Chunks[i]
		switch {
		case c.Off < end || c.Len <= 0 || c.Off > e.Size-c.Len:
			return fmt.Errorf("chunk [%d,+%d) after %d in %d bytes: %w", c.Off, c.Len, end, e.Size, ErrInvalid)
		case c.BlobOff < 0 || c.BlobLen <= 0 || c.BlobOff > math.MaxInt64-c.BlobLen:
			return fmt.Errorf("compressed range [%d,+%d): %w", c.BlobOff, c.BlobLen, ErrInvalid)
		case c.Inner < 0 || c.Inner > math.MaxInt64-c.Len:
			return fmt.Errorf("position %d in a compressed range: %w", c.Inner, ErrInvalid)
		case c.Codec < Stored || c.Codec > Zstd:
			return fmt.Errorf("%s: %w", c.Codec, ErrInvalid)
		case c.Codec == Stored && c.Inner+c.Len > c.BlobLen:
			return fmt.Errorf("stored chunk of %d bytes at %d in a range of %d: %w", c.Len, c.Inner, c.BlobLen, ErrInvalid)
		case digests && c.Digest != "" && !isDigest(c.Digest):
			return fmt.Errorf("digest %s is not sha256 and 64 hexadecimal digits: %w", quote(c.Digest), ErrInvalid)
		}
		end = c.Off + c.Len
	}
	return nil
}

const digestPrefix = "sha256:"

// isDigest tells whether s is a digest that chunks may have.
func isDigest(s string) bool {
	hexed, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(hexed) != hex.EncodedLen(32) {
		return false
	}
	for i := range len(hexed) {
		if c := hexed[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// checkBlob says whether the compressed ranges fit in the blob and lie beside
// each other, and whether the device is one that can be.
func checkBlob(t *TOC) error {
	type span struct{ off, end int64 }
	var spans []span
	var device int64
	for i := range t.Entries {
		if device += t.Entries[i].Extent(); device > MaxDevice {
			return fmt.Errorf("files of more than %d bytes: %w", int64(MaxDevice), ErrLimit)
		}
		for j := range t.Entries[i].Chunks {
			c := &t.Entries[i].Chunks[j]
			s := span{c.BlobOff, c.BlobOff + c.BlobLen}
			if s.end > t.BlobSize {
				return fmt.Errorf("%s: compressed range [%d,+%d) in a blob of %d bytes: %w",
					quote(t.Entries[i].Name), c.BlobOff, c.BlobLen, t.BlobSize, ErrInvalid)
			}
			if n := len(spans); n == 0 || spans[n-1] != s {
				spans = append(spans, s)
			}
		}
	}
	byOff := func(a, b span) int { return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.end, b.end)) }
	if !slices.IsSortedFunc(spans, byOff) {
		slices.SortFunc(spans, byOff)
	}
	for i := 1; i < len(spans); i++ {
		if a, b := spans[i-1], spans[i]; a != b && b.off < a.end {
			return fmt.Errorf("compressed ranges [%d,+%d) and [%d,+%d) overlap: %w",
				a.off, a.end-a.off, b.off, b.end-b.off, ErrInvalid)
		}
	}
	return nil
}
