package tarscan

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/lacunafs/lacuna/internal/toc"
)

// fragment is a range of a sparse file that the archive holds.
type fragment struct{ off, n int64 }

// sparse finds out which parts of the file in hand are there. GNU tar has
// written four forms (GNU tar manual, "Storing Sparse Files"): in the header and
// blocks after it; in records of an extended header, as a list (0.0) or one
// value (0.1); and at the head of the data (1.0).
func (a *archive) sparse(h *header) error {
	var err error
	major, minor := h.pax["GNU.sparse.major"], h.pax["GNU.sparse.minor"]
	switch {
	case h.typ == typeSparse:
		err = a.sparseOld(h)
	case h.typ != typeRegular && h.typ != typeContiguous:
		return nil
	case major == "1" && minor == "0":
		if err = h.sparseNames(); err == nil {
			err = a.sparseInData(h)
		}
	case h.pax[sparseMap] != "" || (major == "0" && (minor == "0" || minor == "1")):
		if err = h.sparseNames(); err == nil {
			err = h.sparseInRecord()
		}
	case major != "" || minor != "":
		return invalid("%.200q: sparse format %.20q.%.20q", h.name, major, minor)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return h.checkSparse()
}

// sparseNames takes the true name and size, which the records have; others are
// for programs that do not know sparse files.
func (h *header) sparseNames() (err error) {
	if name := h.pax["GNU.sparse.name"]; name != "" {
		h.name = name
	}
	size := h.pax["GNU.sparse.size"]
	if size == "" {
		size = h.pax["GNU.sparse.realsize"]
	}
	if size == "" {
		return nil
	}
	if h.real, err = strconv.ParseInt(size, 10, 64); err != nil {
		return invalid("%.200q: sparse size %.200q", h.name, size)
	}
	return nil
}

// checkSparse wants fragments in order, within the file, and as long together
// as the data.
func (h *header) checkSparse() error {
	var end, sum int64
	kept := h.extents[:0]
	for _, f := range h.extents {
		if f.off < end || f.n < 0 || f.off > h.real-f.n {
			return invalid("%.200q: fragment [%d,+%d) after %d in %d bytes", h.name, f.off, f.n, end, h.real)
		}
		end, sum = f.off+f.n, sum+f.n
		if f.n > 0 {
			kept = append(kept, f)
		}
	}
	if sum != h.size {
		return invalid("%.200q: fragments of %d bytes, data of %d", h.name, sum, h.size)
	}
	if h.extents = kept; kept == nil {
		h.extents = []fragment{}
	}
	return nil
}

// sparseInRecord reads "offset,length,offset,length...".
func (h *header) sparseInRecord() error {
	list := h.pax[sparseMap]
	if list == "" {
		return nil
	}
	parts := strings.Split(list, ",")
	if len(parts)%2 != 0 {
		return invalid("%.200q: sparse map with half a fragment", h.name)
	}
	for i := 0; i < len(parts); i += 2 {
		f, err := parseFragment(parts[i], parts[i+1])
		if err != nil {
			return invalid("%.200q: sparse map has %.50q,%.50q", h.name, parts[i], parts[i+1])
		}
		h.extents = append(h.extents, f)
	}
	return nil
}

func parseFragment(off, n string) (f fragment, err error) {
	if f.off, err = strconv.ParseInt(off, 10, 64); err != nil {
		return f, err
	}
	f.n, err = strconv.ParseInt(n, 10, 64)
	return f, err
}

// sparseInData reads the map before the data: a count and then offsets and
// lengths, each on a line, filled up to a block.
func (a *archive) sparseInData(h *header) error {
	var text []byte
	line := func() (string, error) {
		for {
			if at := bytes.IndexByte(text, '\n'); at >= 0 {
				s := string(text[:at])
				text = text[at+1:]
				return s, nil
			}
			if len(text) > 64 || h.size < blockSize {
				return "", invalid("%.200q: sparse map without an end", h.name)
			}
			var block [blockSize]byte
			if err := a.data(block[:]); err != nil {
				return "", err
			}
			h.size -= blockSize
			text = append(text, block[:]...)
		}
	}
	s, err := line()
	if err != nil {
		return err
	}
	count, err := strconv.ParseUint(s, 10, 31)
	if err != nil || count > maxSpecial/4 {
		return invalid("%.200q: sparse map of %.50q fragments", h.name, s)
	}
	for range count {
		off, err := line()
		if err != nil {
			return err
		}
		n, err := line()
		if err != nil {
			return err
		}
		f, err := parseFragment(off, n)
		if err != nil {
			return invalid("%.200q: sparse map has %.50q,%.50q", h.name, off, n)
		}
		h.extents = append(h.extents, f)
	}
	return nil
}

// sparseOld reads the map in the header of GNU's own type: four fragments, and
// as long as a flag says so, blocks of 21 more (GNU tar, src/tar.h, struct sparse_header).
func (a *archive) sparseOld(h *header) error {
	if !h.gnuMagic {
		return invalid("%.200q: a GNU sparse file in another format", h.name)
	}
	b := h.headerBlock[:]
	var err error
	if h.real, err = numeric(b[483:495]); err != nil {
		return invalid("%.200q: sparse size %q", h.name, b[483:495])
	}
	table, more := b[386:482], b[482] > 0
	for {
		for ; len(table) >= 24 && table[0] != 0; table = table[24:] {
			off, errOff := numeric(table[:12])
			n, errN := numeric(table[12:24])
			if errOff != nil || errN != nil {
				return invalid("%.200q: sparse map has %q", h.name, table[:24])
			}
			h.extents = append(h.extents, fragment{off, n})
		}
		if !more {
			return nil
		}
		if len(h.extents) > toc.MaxEntries {
			return invalid("%.200q: sparse map of more than %d fragments", h.name, toc.MaxEntries)
		}
		var block [blockSize]byte
		left := a.left // the map is no part of the data
		if err := a.data(block[:]); err != nil {
			return err
		}
		a.left = left
		table, more = block[:504], block[504] > 0
	}
}
