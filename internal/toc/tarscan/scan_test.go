package tarscan

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// pack compresses parts of a layer as members or frames of one blob.
func pack(t testing.TB, codec toc.Codec, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		var w io.WriteCloser
		var err error
		switch codec {
		case toc.Stored:
			b.Write(p)
			continue
		case toc.Gzip:
			w = gzip.NewWriter(&b)
		case toc.Zstd:
			w, err = zstd.NewWriter(&b)
		}
		if err == nil {
			_, err = w.Write(p)
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// device keeps what Data is given, as a caller with a device file does.
type device struct {
	bytes  []byte
	names  []string
	places []int64
}

func (d *device) file(e *toc.Entry) (io.WriterAt, error) {
	d.names = append(d.names, e.Name)
	at := int64(len(d.bytes))
	d.places = append(d.places, at)
	d.bytes = append(d.bytes, make([]byte, e.Extent())...)
	return section{d, at}, nil
}

type section struct {
	d  *device
	at int64
}

func (a section) WriteAt(p []byte, off int64) (int, error) {
	return copy(a.d.bytes[a.at+off:], p), nil
}

// check compares a scan's device with the TOC, place by place.
func (d *device) check(t *testing.T, got *toc.TOC, items map[string]toctest.Item) {
	t.Helper()
	var at int64
	files := 0
	for i := range got.Entries {
		e := &got.Entries[i]
		if !e.HoldsPlace() {
			continue
		}
		if d.places[files] != at {
			t.Fatalf("%q lies at %d, the scan had it at %d", e.Name, at, d.places[files])
		}
		if e.Type == toc.Regular && !bytes.Equal(d.bytes[at:at+e.Size], items[e.Name].Data) {
			t.Errorf("%q: other data in the device", e.Name)
		}
		files++
		at += e.Extent()
	}
	if files != len(d.places) || got.DeviceSize() != int64(len(d.bytes)) {
		t.Errorf("%d files, device of %d bytes; the scan had %d and %d", files, got.DeviceSize(), len(d.places), len(d.bytes))
	}
}

func TestTortureLayerReadsAsTar(t *testing.T) {
	files := toctest.Torture()
	files = append(files, toctest.Reg("latin\xe9\xff", []byte("not utf-8")))
	layer := toctest.Tar(t, files)
	want := toctest.Want(t, layer, toctest.Loss{})
	cut := len(layer) / 3
	for _, codec := range []toc.Codec{toc.Stored, toc.Gzip, toc.Zstd} {
		for name, parts := range map[string][][]byte{"one": {layer}, "several": {layer[:cut], layer[cut : cut+1], nil, layer[cut+1:]}} {
			t.Run(codec.String()+" "+name, func(t *testing.T) {
				blob := pack(t, codec, parts...)
				var d device
				got, sums, err := Scan(t.Context(), bytes.NewReader(blob), Options{Data: d.file})
				if err != nil {
					t.Fatal(err)
				}
				want2 := Sums{
					Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(blob)), Size: int64(len(blob)),
					DiffID: fmt.Sprintf("sha256:%x", sha256.Sum256(layer)), DiffSize: int64(len(layer)), Codec: codec,
				}
				if sums != want2 {
					t.Errorf("%+v, want %+v", sums, want2)
				}
				items := toctest.Got(t, got, blob)
				toctest.Compare(t, items, want)
				d.check(t, got, items)
			})
		}
	}
}

// umoci's insert ends a layer behind the last file's data, without its padding.
func TestLayerThatEndsWithoutPadding(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"one", "two"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 8}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("8 bytes.")); err != nil {
			t.Fatal(err)
		}
	}
	for end, want := range map[int]bool{2*512 + 512 + 8: true, 2*512 + 512 + 100: true, 2*512 + 512 + 7: false} {
		table, _, err := Scan(t.Context(), bytes.NewReader(b.Bytes()[:end]), Options{})
		if (err == nil) != want || want && len(table.Entries) != 2 {
			t.Errorf("%d bytes: %v", end, err)
		}
	}
}
