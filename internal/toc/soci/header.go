package soci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

// maxHeader bounds what lies between the files of a layer: two long names and PAX
// records of at most 1 MiB each (archive/tar, maxSpecialFileSize), and their headers.
const maxHeader = 4 << 20

// headerSum is how much is kept of the SHA-256 of what a header has to say.
const headerSum = 16

// Headers are the tar headers of the files that have a place in the device, in their
// order: how long each is, with the extended headers in front of it, and what it has to
// say. A zTOC that says of a file that its data are another's is found out by them: a
// header lies right before the data that it is of.
type Headers struct {
	blocks []uint16
	sums   []byte // headerSum bytes of each
}

// Len is how many files there are.
func (h *Headers) Len() int { return len(h.blocks) }

// Before is how many bytes the header of file n takes, which end where its data begin.
func (h *Headers) Before(n int) int64 { return int64(h.blocks[n]) * blockSize }

// Check tells whether header, those bytes, is one header, of a regular file of the name
// and size that the zTOC says. toc.ErrInvalid: it is not.
func (h *Headers) Check(n int, header []byte) error {
	got, err := readHeader(header)
	if err != nil {
		return fmt.Errorf("no header of a file lies before its data: %w", err)
	}
	sum, err := sumHeader(got.Name, got.Size)
	if err != nil {
		return err
	}
	if typeName(got.Typeflag) != "reg" || string(sum) != string(h.sums[n*headerSum:][:headerSum]) {
		return fmt.Errorf("the data are those of %.200q, of %d bytes, and the zTOC says they are another's: %w", got.Name, got.Size, toc.ErrInvalid)
	}
	return nil
}

// readHeader reads one header, with what extends it, that takes all of b.
func readHeader(b []byte) (*tar.Header, error) {
	r := bytes.NewReader(b)
	got, err := tar.NewReader(r).Next()
	if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
		return nil, fmt.Errorf("%w: %w", err, toc.ErrInvalid)
	}
	if r.Len() > 0 {
		return nil, invalid("%d of %d bytes follow that of %.200q", r.Len(), len(b), got.Name)
	}
	for k := range got.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return nil, invalid("%.200q is a sparse file", got.Name)
		}
	}
	return got, nil
}

// sumHeader is the sum over what a header says.
func sumHeader(name string, size int64) ([]byte, error) {
	clean, err := toc.CleanName(name)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", size, clean))
	return sum[:headerSum], nil
}

// add adds the header of f, which lies behind end.
func (h *Headers) add(f *File, end int64) error {
	n := f.Off - end
	if n < blockSize || n%blockSize != 0 || n > maxHeader {
		return invalid("a header of %d bytes", n)
	}
	sum, err := sumHeader(f.Name, f.Size)
	if err != nil {
		return err
	}
	h.blocks = append(h.blocks, uint16(n/blockSize))
	h.sums = append(h.sums, sum...)
	return nil
}

// Header is the range of the layer that the header of f takes, a file of z with data.
// TOC has said that z's files lie where they can.
func (z *Ztoc) Header(f *File) (off, n int64, err error) {
	i, _ := slices.BinarySearchFunc(z.Files, f.Off, func(f File, off int64) int { return cmp.Compare(f.Off, off) })
	if i > 0 {
		off = z.Files[i-1].end()
	}
	if n = f.Off - off; n > maxHeader {
		return 0, 0, invalid("a header of %d bytes", n)
	}
	return off, n, nil
}

// CheckHeader is Headers.Check for f alone. header is what Header says.
func (f *File) CheckHeader(header []byte) error {
	var h Headers
	if err := h.add(f, f.Off-int64(len(header))); err != nil {
		return err
	}
	return h.Check(0, header)
}

// dataSize is how much data follows the header.
func (f *File) dataSize() int64 {
	if f.Type != "reg" {
		return 0
	}
	return f.Size
}

// end is where the file's data end, with their padding.
func (f *File) end() int64 { return f.Off + (f.dataSize()+blockSize-1)&^(blockSize-1) }
