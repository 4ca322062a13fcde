package toctest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Item is an entry with its data, in a form that can be compared and printed.
type Item struct {
	Entry toc.Entry // without Chunks
	Data  []byte
}

// Loss says what a format cannot carry.
type Loss struct {
	Fractions bool // of a second: times are rounded
	Bytes     bool // of names that are not UTF-8
}

// Want reads a layer with archive/tar alone, and by simple rules: the last entry
// of a name wins.
func Want(t testing.TB, layer []byte, loss Loss) map[string]Item {
	t.Helper()
	items := make(map[string]Item)
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return items
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if item, ok := item(h, data, loss); ok {
			items[Key(&item.Entry)] = item
		}
	}
}

// Key is an entry's name, together with whether it is a marker.
func Key(e *toc.Entry) string {
	switch e.Type {
	case toc.Whiteout:
		return "whiteout:" + e.Name
	case toc.Opaque:
		return "opaque:" + e.Name
	}
	return e.Name
}

func item(h *tar.Header, data []byte, loss Loss) (Item, bool) {
	clean := func(s string) string { return strings.TrimPrefix(path.Clean("/"+s), "/") }
	name := clean(h.Name)
	dir, last := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	switch {
	case last == ".wh..wh..opq":
		return Item{Entry: toc.Entry{Name: dir, Type: toc.Opaque}}, true
	case strings.HasPrefix(last, ".wh..wh."), strings.Contains("/"+dir, "/.wh..wh."):
		return Item{}, false
	case strings.HasPrefix(last, ".wh."):
		return Item{Entry: toc.Entry{Name: path.Join(dir, last[4:]), Type: toc.Whiteout}}, true
	}
	types := map[byte]toc.Type{
		tar.TypeReg: toc.Regular, tar.TypeGNUSparse: toc.Regular, tar.TypeCont: toc.Regular,
		tar.TypeDir: toc.Directory, tar.TypeSymlink: toc.Symlink, tar.TypeLink: toc.Hardlink,
		tar.TypeChar: toc.Char, tar.TypeBlock: toc.Block, tar.TypeFifo: toc.Fifo,
	}
	e := toc.Entry{Name: name, Type: types[h.Typeflag]}
	if e.Type == 0 {
		return Item{}, false
	}
	if e.Type == toc.Hardlink {
		e.Link = clean(h.Linkname)
		return Item{Entry: e}, true
	}
	e.Mode, e.UID, e.GID = uint32(h.Mode)&0o7777, uint32(h.Uid), uint32(h.Gid)
	when := h.ModTime
	if loss.Fractions {
		when = when.Round(1e9)
	}
	e.Sec, e.Nsec = when.Unix(), uint32(when.Nanosecond())
	switch e.Type {
	case toc.Symlink:
		e.Link = h.Linkname
	case toc.Char, toc.Block:
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	case toc.Regular:
		e.Size = int64(len(data))
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			e.Xattrs = append(e.Xattrs, toc.Xattr{Name: x, Value: v})
		}
	}
	sort.Slice(e.Xattrs, func(i, j int) bool { return e.Xattrs[i].Name < e.Xattrs[j].Name })
	if loss.Bytes {
		e.Name = validUTF8(e.Name)
	}
	return Item{Entry: e, Data: data}, true
}

// validUTF8 is s as encoding/json writes it: each wrong byte is a U+FFFD.
func validUTF8(s string) string {
	return string([]rune(s))
}

// Got is what the TOC says, with the data that its chunks lead to in blob.
func Got(t testing.TB, got *toc.TOC, blob []byte) map[string]Item {
	t.Helper()
	items := make(map[string]Item)
	ranges := make(map[[2]int64][]byte)
	var decoders toc.Decoders
	decode := func(c toc.Chunk) []byte {
		key := [2]int64{c.BlobOff, c.BlobLen}
		if b, ok := ranges[key]; ok {
			return b
		}
		r, err := decoders.Open(c.Codec, bytes.NewReader(blob[c.BlobOff:c.BlobOff+c.BlobLen]))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		ranges[key] = b
		return b
	}
	for i := range got.Entries {
		e := got.Entries[i]
		if e.Type == toc.Replaced {
			continue
		}
		data := make([]byte, e.Size)
		for _, c := range e.Chunks {
			b := decode(c)[c.Inner:][:c.Len]
			if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); c.Digest != "" && c.Digest != sum {
				t.Errorf("%q: chunk [%d,+%d) is %s, not %s", e.Name, c.Off, c.Len, sum, c.Digest)
			}
			copy(data[c.Off:], b)
		}
		e.Chunks = nil
		if _, twice := items[Key(&e)]; twice {
			t.Errorf("%q twice", e.Name)
		}
		items[Key(&e)] = Item{e, data}
	}
	return items
}

// Compare says what differs.
func Compare(t testing.TB, got, want map[string]Item) {
	t.Helper()
	for k, w := range want {
		g, ok := got[k]
		switch {
		case !ok:
			t.Errorf("%q is missing", k)
		case brief(g) != brief(w):
			t.Errorf("%q is\n%s, want\n%s", k, brief(g), brief(w))
		case !bytes.Equal(g.Data, w.Data):
			t.Errorf("%q: other data", k)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			t.Errorf("%q is there, and nothing asks for it", k)
		}
	}
}

func brief(i Item) string { return fmt.Sprintf("%+v, %d bytes", i.Entry, len(i.Data)) }
