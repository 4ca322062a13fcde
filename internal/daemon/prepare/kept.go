package prepare

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/toc"
)

// A kept table of contents begins with a line that says what it is of: "v" where all
// of the device has digests that follow from the manifest's, "u" where not; the
// device's id; why the layer was scanned, quoted; and the CRC-32C of what stands
// before it, in eight hexadecimal digits. The encoding follows, which has a checksum
// of its own.
const (
	tocVerified   = "v"
	tocUnverified = "u"
	// maxTOCHead bounds the line.
	maxTOCHead = 4096
)

// tocSuffix is how the name of a table of contents ends.
const tocSuffix = ".toc"

// keptSuffixes are how names of all that is kept of a layer end.
func keptSuffixes() []string { return []string{tocSuffix, spansSuffix, ztocSuffix} }

func (l *Library) tocPath(id ondemand.ObjectID) string {
	return filepath.Join(l.dir, "layers", string(id)+tocSuffix)
}

func tocHead(l Layer) string {
	mark := tocUnverified
	if l.Verified {
		mark = tocVerified
	}
	return withSum(fmt.Sprintf("%s %s %q", mark, l.Device, l.Why))
}

func withSum(text string) string {
	return fmt.Sprintf("%s %08x\n", text, crc32.Checksum([]byte(text), crc32.MakeTable(crc32.Castagnoli)))
}

// parseTOCHead is the opposite of tocHead. Size and Format are not in it.
func parseTOCHead(line string) (l Layer, ok bool) {
	// The last character is the line's end, the ninth from the right the blank.
	if len(line) < 10 {
		return l, false
	}
	text := line[:len(line)-10]
	mark, rest, _ := strings.Cut(text, " ")
	id, why, _ := strings.Cut(rest, " ")
	l.Device, l.Verified = ondemand.ObjectID(id), mark == tocVerified
	var err error
	l.Why, err = strconv.Unquote(why)
	return l, err == nil && tocHead(l) == line
}

// saveTOC keeps a layer's table of contents.
func (l *Library) saveTOC(p prepared) error {
	return replace(l.tocPath(p.Device), func(w io.Writer) error {
		if _, err := io.WriteString(w, tocHead(p.Layer)); err != nil {
			return err
		}
		return p.toc.Encode(w)
	})
}

// openTOC opens what was kept of a device, up to where the encoding begins. What is
// known of the layer is in head. ErrDamaged where it is not what was written.
func (l *Library) openTOC(id ondemand.ObjectID) (head Layer, r *bufio.Reader, close func() error, err error) {
	f, err := openFile(l.tocPath(id))
	if err != nil {
		return head, nil, nil, err
	}
	r = bufio.NewReaderSize(f, 64<<10)
	peeked, err := r.Peek(maxTOCHead)
	if err != nil && !errors.Is(err, io.EOF) {
		return head, nil, nil, errors.Join(err, f.Close())
	}
	line, _, found := strings.Cut(string(peeked), "\n")
	head, ok := parseTOCHead(line + "\n")
	if !found || !ok || head.Device != id {
		return head, nil, nil, errors.Join(fmt.Errorf("its first line: %w", ErrDamaged), f.Close())
	}
	if _, err := r.Discard(len(line) + 1); err != nil {
		return head, nil, nil, errors.Join(err, f.Close())
	}
	return head, r, f.Close, nil
}

// withTOC reads what was kept of a device with read.
func (l *Library) withTOC(id ondemand.ObjectID, read func(head Layer, r io.Reader) error) error {
	head, r, closeIt, err := l.openTOC(id)
	if err == nil {
		err = errors.Join(read(head, r), closeIt())
	}
	if errors.Is(err, toc.ErrInvalid) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return fmt.Errorf("read the table of contents of %s: %w", id.Short(), err)
	}
	return nil
}

// loadTOC reads a table of contents that was kept. An error that wraps
// fs.ErrNotExist where there is none, ErrDamaged where it is not what was written.
func (l *Library) loadTOC(id ondemand.ObjectID) (t *toc.TOC, head Layer, err error) {
	err = l.withTOC(id, func(h Layer, r io.Reader) (err error) {
		head = h
		t, err = toc.Decode(r)
		return err
	})
	return t, head, err
}

// checkTOC finds what loadTOC would, in less time.
func (l *Library) checkTOC(layer Layer) error {
	return l.withTOC(layer.Device, func(head Layer, r io.Reader) error {
		if head.Verified != layer.Verified {
			return fmt.Errorf("of another plan: %w", ErrDamaged)
		}
		return toc.Check(r)
	})
}

// openFile opens a file of the library. What is none, such as a directory or a pipe,
// is ErrDamaged, and is not waited for.
func openFile(name string) (*os.File, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file: %w", filepath.Base(name), ErrDamaged)
	}
	return os.Open(name)
}

// replace is durable.Replace. A directory in the way becomes one of what a crash
// leaves half written.
func replace(name string, write func(io.Writer) error) error {
	if err := clearWay(name, false); err != nil {
		return err
	}
	return durable.Replace(name, write)
}

// clearWay gives what has that name another one, if its being a directory is not
// what is wanted.
func clearWay(name string, wantDir bool) error {
	st, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.IsDir() == wantDir {
		return nil
	}
	if err != nil {
		return err
	}
	aside, err := os.MkdirTemp(filepath.Dir(name), durable.Prefix+"*")
	if err != nil {
		return err
	}
	err = os.Rename(name, filepath.Join(aside, "was"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else has done it
	}
	return err
}
