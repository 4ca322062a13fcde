package tarscan

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// raw makes header blocks by hand, for what archive/tar does not write.
type raw struct{ bytes.Buffer }

// header writes a block in GNU's form with the given type, name and data size;
// set may change it before the checksum is made.
func (r *raw) header(typ byte, name string, size int, set func(b []byte)) *raw {
	b := make([]byte, blockSize)
	copy(b, name)
	copy(b[100:], "0000644\x000000001\x000000002\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00", size, 1700000000))
	b[156] = typ
	copy(b[257:], "ustar  \x00")
	if set != nil {
		set(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(b)
	return r
}

// data writes data and fills up the block.
func (r *raw) data(s string) *raw {
	r.WriteString(s)
	r.Write(make([]byte, padded(int64(len(s)))-int64(len(s))))
	return r
}

func (r *raw) pax(records ...string) *raw {
	var b strings.Builder
	for _, rec := range records {
		n := len(rec) + 2
		for n != len(fmt.Sprint(n))+len(rec)+2 {
			n = len(fmt.Sprint(n)) + len(rec) + 2
		}
		fmt.Fprintf(&b, "%d %s\n", n, rec)
	}
	return r.header(typePAX, "pax", b.Len(), nil).data(b.String())
}

func (r *raw) end() []byte { return append(r.Bytes(), make([]byte, 2*blockSize)...) }

// sparse12 is the two numbers of a fragment in an old GNU header.
func sparse12(off, n int) string { return fmt.Sprintf("%011o\x00%011o\x00", off, n) }

// sparseLayers are one file of 10000 bytes, "AAAA" at 0 and "BB" at 8000, in each
// form that GNU tar has written, and one with more fragments than a header holds.
func sparseLayers() map[string][]byte {
	oldHeader := func(more byte, real int, frags ...string) func([]byte) {
		return func(b []byte) {
			copy(b[386:482], strings.Join(frags, ""))
			b[482] = more
			copy(b[483:], fmt.Sprintf("%011o\x00", real))
		}
	}
	var many, rest []string
	var data strings.Builder
	for i := range 30 {
		many = append(many, sparse12(i*1000, 3))
		fmt.Fprintf(&data, "%03d", i)
	}
	rest, many = many[4:], many[:4]
	ext := strings.Join(rest[:21], "") + "\x01\x00\x00\x00\x00\x00\x00\x00" + strings.Join(rest[21:], "")
	return map[string][]byte{
		"old": new(raw).header(typeSparse, "f", 6, oldHeader(0, 10000, sparse12(0, 4), sparse12(8000, 2), sparse12(10000, 0))).
			data("AAAABB").header('0', "next", 1, nil).data("n").end(),
		"old, extended": new(raw).header(typeSparse, "f", 90, oldHeader(1, 40000, many...)).
			data(ext).data(data.String()).header('0', "next", 1, nil).data("n").end(),
		"0.0": new(raw).pax("GNU.sparse.size=10000", "GNU.sparse.numblocks=2", "GNU.sparse.offset=0", "GNU.sparse.numbytes=4",
			"GNU.sparse.offset=8000", "GNU.sparse.numbytes=2").header('0', "f", 6, nil).data("AAAABB").end(),
		"0.1": new(raw).pax("GNU.sparse.name=f", "GNU.sparse.size=10000", "GNU.sparse.numblocks=2", "GNU.sparse.map=0,4,8000,2").
			header('0', "GNUSparseFile.0/f", 6, nil).data("AAAABB").end(),
		"1.0": new(raw).pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=10000").
			header('0', "GNUSparseFile.0/f", blockSize+6, nil).data("3\n0\n4\n8000\n2\n10000\n0\n").data("AAAABB").
			header('0', "next", 1, nil).data("n").end(),
		"all hole": new(raw).header(typeSparse, "f", 0, oldHeader(0, 10000, sparse12(10000, 0))).end(),
	}
}

func TestSparseFilesOfEveryForm(t *testing.T) {
	for name, layer := range sparseLayers() {
		t.Run(name, func(t *testing.T) {
			for _, codec := range []toc.Codec{toc.Stored, toc.Gzip} {
				blob := pack(t, codec, layer)
				var d device
				got, _, err := Scan(t.Context(), bytes.NewReader(blob), Options{Data: d.file})
				if err != nil {
					t.Fatal(err)
				}
				items := toctest.Got(t, got, blob)
				toctest.Compare(t, items, toctest.Want(t, layer, toctest.Loss{}))
				d.check(t, got, items)
				if e := got.Entries[0]; e.Size < 10000 || (len(e.Chunks) < 2 && name != "all hole") {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

// A file of 15 TiB that is a hole costs what its header costs.
func TestHugeHoleIsCheap(t *testing.T) {
	layer := new(raw).pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=16492674416640").
		header('0', "f", blockSize, nil).data("1\n16492674416640\n0\n").end()
	got, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil || got.DeviceSize() != 15<<40 || len(got.Entries[0].Chunks) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHeadersOfEveryForm(t *testing.T) {
	long := strings.Repeat("x", 150)
	base256 := func(at, n int, v int64) func([]byte) {
		return func(b []byte) {
			for i := range n {
				b[at+n-1-i] = byte(v >> (8 * min(i, 8)))
			}
			b[at] |= 0x80
		}
	}
	for name, layer := range map[string][]byte{
		"GNU long names": new(raw).header(typeLongName, "././@LongLink", 151, nil).data(long+"\x00").
			header(typeLongLink, "././@LongLink", 151, nil).data(long+"\x00").header('2', "short", 0, nil).end(),
		"base 256 owner": new(raw).header('0', "f", 0, base256(108, 8, 1<<31)).end(),
		"base 256 time":  new(raw).header('0', "f", 0, base256(136, 12, -86400)).end(),
		"old":            new(raw).header(0, "dir/", 0, func(b []byte) { copy(b[257:], make([]byte, 8)) }).end(),
		"contiguous":     new(raw).header('7', "f", 3, nil).data("abc").end(),
		"link with size": new(raw).header('0', "f", 1, nil).data("x").header('1', "l", 700, func(b []byte) { copy(b[157:], "f") }).end(),
		"directory with size": new(raw).header('5', "d", 700, nil).
			header('0', "f", 1, nil).data("x").end(),
		"fractions": new(raw).pax("mtime=-1.25").header('0', "f", 0, nil).pax("mtime=1.9999999999").header('0', "g", 0, nil).
			pax("mtime=-0.5").header('0', "h", 0, nil).pax("mtime=12").header('0', "i", 0, nil).end(),
		"records":      new(raw).pax("path=p", "uid=4000000000", "gid=7", "size=2", "path=").header('0', "f", 0, nil).data("ab").end(),
		"empty xattr":  new(raw).pax("SCHILY.xattr.user.a=", "SCHILY.xattr.user.b=x=y\n").header('0', "f", 0, nil).end(),
		"no end":       new(raw).header('0', "f", 1, nil).data("x").Bytes(),
		"half an end":  append(new(raw).header('0', "f", 1, nil).data("x").Bytes(), make([]byte, blockSize)...),
		"more after":   append(new(raw).header('0', "f", 1, nil).data("x").end(), "anything at all"...),
		"star prefix":  new(raw).header('0', "f", 0, func(b []byte) { copy(b[257:], "ustar\x0000"); copy(b[345:], "dir"); copy(b[508:], "tar\x00") }).end(),
		"ustar prefix": new(raw).header('0', "f", 0, func(b []byte) { copy(b[257:], "ustar\x0000"); copy(b[345:], strings.Repeat("d/", 60)) }).end(),
		"Go 1.8":       new(raw).header('0', "f", 0, func(b []byte) { copy(b[345:], "prefix/dir") }).end(),
		"signed sum":   signedSum(new(raw).header('0', "f\xff\xfe", 0, nil).end()),
		"empty":        {},
		"only an end":  new(raw).end(),
	} {
		t.Run(name, func(t *testing.T) {
			got, sums, err := Scan(t.Context(), bytes.NewReader(layer), Options{})
			if err != nil {
				t.Fatal(err)
			}
			toctest.Compare(t, toctest.Got(t, got, layer), toctest.Want(t, layer, toctest.Loss{}))
			if sums.DiffSize != int64(len(layer)) {
				t.Errorf("%d bytes of %d", sums.DiffSize, len(layer))
			}
		})
	}
}

// signedSum makes the first header's checksum one of signed bytes.
func signedSum(b []byte) []byte {
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:blockSize] {
		sum += int(int8(c))
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestWhatOthersPassOverIsPassedOver(t *testing.T) {
	layer := new(raw).header(typePAXGlobal, "g", 13, nil).data("13 path=evil\n").header(typeVolume, "label", 0, nil).
		header('0', "f", 1, nil).data("x").end()
	got, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil || len(got.Entries) != 1 || got.Entries[0].Name != "f" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLibarchiveXattrs(t *testing.T) {
	layer := new(raw).pax("LIBARCHIVE.xattr.user.a%3Db=AP8", "LIBARCHIVE.xattr.user.c=eA==", "SCHILY.xattr.user.c=raw").
		header('0', "f", 0, nil).end()
	got, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []toc.Xattr{{Name: "user.a=b", Value: "\x00\xff"}, {Name: "user.c", Value: "raw"}}
	if !slices.Equal(got.Entries[0].Xattrs, want) {
		t.Errorf("%q", got.Entries[0].Xattrs)
	}
}

func TestReplacedFilesKeepTheirPlaces(t *testing.T) {
	files := []toctest.File{
		toctest.Reg("a", []byte("old a")), toctest.Reg("d/b", []byte("old b")), toctest.Reg("c", toctest.Text(10000)),
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "a"}},
		toctest.Reg("a", toctest.Text(5000)), toctest.Reg("d", []byte("now a file")), toctest.Reg("e", nil),
		toctest.Reg("last", []byte("z")),
	}
	layer := toctest.Tar(t, files)
	var d device
	got, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{Data: d.file})
	if err != nil {
		t.Fatal(err)
	}
	items := toctest.Got(t, got, layer)
	d.check(t, got, items)
	for name, want := range map[string][]byte{
		"hard": []byte("old a"), "a": toctest.Text(5000), "c": toctest.Text(10000), "d": []byte("now a file"), "last": []byte("z"),
	} {
		if !bytes.Equal(items[name].Data, want) {
			t.Errorf("%s is %.20q", name, items[name].Data)
		}
	}
	if want := []string{"a", "d/b", "c", "a", "d", "last"}; !reflect.DeepEqual(d.names, want) {
		t.Errorf("%q", d.names)
	}
}

func TestManyFilesInOneDirectory(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	const n = 100_000
	for i := range n {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("dir/%d", i), Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, _, err := Scan(t.Context(), &b, Options{})
	if err != nil || len(got.Entries) != n || !errors.Is(got.Validate(), nil) {
		t.Errorf("%d entries, %v", len(got.Entries), err)
	}
}
