package soci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

// HeaderSize is the size of the header's block, which lies before a file's data.
const HeaderSize = blockSize

// CheckHeader tells whether block, the HeaderSize bytes before f.Off of the
// uncompressed layer, is the header of f: a zTOC that says of a file that its data
// are another's is found out by it. The header has neither long names nor
// large sizes; those are in extended headers further in front, which are not read.
func (f *File) CheckHeader(block []byte) error {
	if len(block) != HeaderSize {
		return fmt.Errorf("header of %.200q: %d bytes: %w", f.Name, len(block), toc.ErrInvalid)
	}
	h, err := tar.NewReader(bytes.NewReader(block)).Next()
	if err != nil || h.Typeflag == tar.TypeXGlobalHeader {
		return fmt.Errorf("no header lies before the data of %.200q: %w", f.Name, toc.ErrInvalid)
	}
	var long, large bool
	for _, r := range f.PAX {
		long = long || r.Key == "path"
		large = large || r.Key == "size"
	}
	// GNU tar cuts a long name after 100 bytes, and others before the NUL.
	long = long || len(h.Name) >= 99 && strings.HasPrefix(f.Name, h.Name)
	if typeName(h.Typeflag) != f.Type || h.Name != f.Name && !long || h.Size != f.Size && !large {
		return fmt.Errorf("the data of %.200q are those of %.200q: %w", f.Name, h.Name, toc.ErrInvalid)
	}
	return nil
}
