package tarscan

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestHostileLayersAreRefused(t *testing.T) {
	file := func(name string) []byte { return new(raw).header('0', name, 1, nil).data("x").end() }
	pax := func(records ...string) []byte {
		return new(raw).pax(records...).header('0', "f", 6, nil).data("AAAABB").end()
	}
	gz := pack(t, toc.Gzip, file("f"))
	for name, layer := range map[string][]byte{
		"dots":            file("../etc/passwd"),
		"hidden dots":     file("a/../../b"),
		"no name":         file(""),
		"negative size":   new(raw).header('0', "f", 0, func(b []byte) { copy(b[124:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") }).end(),
		"enormous size":   new(raw).header('0', "f", 0, func(b []byte) { copy(b[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }).end(),
		"not a number":    new(raw).header('0', "f", 0, func(b []byte) { copy(b[124:], "12x") }).end(),
		"checksum":        append([]byte("g"), file("f")[1:]...),
		"garbage":         toctest.Random(1, 4096),
		"lone zeros":      append(make([]byte, blockSize), file("f")...),
		"unknown type":    new(raw).header('Q', "f", 0, nil).end(),
		"through symlink": new(raw).header('2', "s", 0, func(b []byte) { copy(b[157:], "/etc") }).header('0', "s/passwd", 1, nil).data("x").end(),
		"link to dots":    new(raw).header('1', "l", 0, func(b []byte) { copy(b[157:], "../../etc/passwd") }).end(),
		"link to itself":  new(raw).header('1', "l", 0, func(b []byte) { copy(b[157:], "l") }).end(),
		"owner":           pax("uid=4294967296"),
		"negative owner":  pax("uid=-1"),
		"owner, words":    pax("gid=root"),
		"time":            pax("mtime=12.3x"),
		"NUL in a name":   pax("path=a\x00b"),
		"record":          new(raw).header(typePAX, "p", 9, nil).data("99 a=b\n\n\n").header('0', "f", 0, nil).end(),
		"record, no =":    pax("path"),
		"large header":    new(raw).header(typeLongName, "l", maxSpecial+1, nil).end(),
		"bzip2":           []byte("BZh91AY&SY"),
		"xz":              []byte("\xfd7zXZ\x00\x00"),

		"sparse overlap":    pax("GNU.sparse.map=0,4,2,2", "GNU.sparse.size=100"),
		"sparse past end":   pax("GNU.sparse.map=0,4,99,2", "GNU.sparse.size=100"),
		"sparse negative":   pax("GNU.sparse.map=-4,4,8,2", "GNU.sparse.size=100"),
		"sparse overflow":   pax("GNU.sparse.map=9223372036854775807,6", "GNU.sparse.size=100"),
		"sparse data":       pax("GNU.sparse.map=0,4", "GNU.sparse.size=100"),
		"sparse odd":        pax("GNU.sparse.map=0,4,8", "GNU.sparse.size=100"),
		"sparse huge":       pax("GNU.sparse.map=0,6", "GNU.sparse.size=-1"),
		"sparse version":    pax("GNU.sparse.major=2", "GNU.sparse.minor=0"),
		"sparse 1.0 no map": pax("GNU.sparse.major=1", "GNU.sparse.minor=0"),
		"sparse 0.0 order":  pax("GNU.sparse.numbytes=1", "GNU.sparse.offset=1"),

		"something after gzip": append(bytes.Clone(gz), "x"...),
		"damaged gzip":         append(bytes.Clone(gz[:len(gz)-6]), 0, 0, 0, 0, 0, 0),
	} {
		got, sums, err := Scan(t.Context(), bytes.NewReader(layer), Options{})
		if err == nil || got != nil || sums != (Sums{}) {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		if name != "damaged gzip" && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
			t.Errorf("%s: error of no kind: %v", name, err)
		}
	}
}

func TestShortenedLayerNeverPasses(t *testing.T) {
	layer := toctest.Tar(t, []toctest.File{toctest.Dir("d"), toctest.Reg("d/f", toctest.Random(1, 5000)), toctest.Reg("g", toctest.Text(3000))})
	for _, codec := range []toc.Codec{toc.Stored, toc.Gzip, toc.Zstd} {
		blob := pack(t, codec, layer)
		_, whole, err := Scan(t.Context(), bytes.NewReader(blob), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(blob); n += 1 + n/50 {
			got, sums, err := Scan(t.Context(), bytes.NewReader(blob[:n]), Options{})
			if err == nil && (sums.Digest == whole.Digest || got.Validate() != nil) {
				t.Fatalf("%s: %d bytes of %d pass", codec, n, len(blob))
			}
			if err == nil && codec != toc.Stored && n > 0 {
				t.Errorf("%s: %d bytes of %d are a whole layer", codec, n, len(blob))
			}
		}
	}
}

func TestZerosAfterGzipAreRead(t *testing.T) {
	layer := toctest.Tar(t, []toctest.File{toctest.Reg("f", []byte("x"))})
	blob := append(pack(t, toc.Gzip, layer), make([]byte, 300_000)...)
	_, sums, err := Scan(t.Context(), bytes.NewReader(blob), Options{})
	if err != nil || sums.Size != int64(len(blob)) || sums.DiffSize != int64(len(layer)) {
		t.Errorf("%+v, %v", sums, err)
	}
}

func TestBombsAreRefused(t *testing.T) {
	// One frame of zeros, again and again: 8 GiB are 0.5 MiB.
	var zeros bytes.Buffer
	w := tar.NewWriter(&zeros)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: 8 << 30}); err != nil {
		t.Fatal(err)
	}
	head := pack(t, toc.Zstd, zeros.Bytes())
	frame := pack(t, toc.Zstd, make([]byte, 64<<20))
	bomb := func() io.Reader {
		parts := []io.Reader{bytes.NewReader(head)}
		for range 128 {
			parts = append(parts, bytes.NewReader(frame))
		}
		return io.MultiReader(parts...)
	}
	for _, o := range []Options{{MaxSize: 100 << 20}, {MaxSize: 1 << 40, MaxRatio: 1000, free: 100 << 20}, {free: 100 << 20}} {
		written := new(counter)
		o.Data = func(*toc.Entry) (io.WriterAt, error) { return written, nil }
		_, _, err := Scan(t.Context(), bomb(), o)
		if !errors.Is(err, toc.ErrLimit) {
			t.Errorf("%+v: %v", o.MaxSize, err)
		}
		if written.n > 110<<20 {
			t.Errorf("%d bytes came out", written.n)
		}
	}
}

type counter struct{ n int64 }

func (c *counter) WriteAt(p []byte, _ int64) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func TestErrorsComeBack(t *testing.T) {
	layer := toctest.Tar(t, []toctest.File{toctest.Reg("f", toctest.Random(1, 1<<20))})
	errTest := errors.New("test")
	failing := func(n int64) io.Reader {
		return io.MultiReader(io.LimitReader(bytes.NewReader(layer), n), iotest.ErrReader(errTest))
	}
	for _, n := range []int64{0, 3, 600, 100_000, int64(len(layer))} {
		if _, _, err := Scan(t.Context(), failing(n), Options{}); !errors.Is(err, errTest) {
			t.Errorf("reader, after %d: %v", n, err)
		}
	}
	for name, data := range map[string]func(*toc.Entry) (io.WriterAt, error){
		"data":   func(*toc.Entry) (io.WriterAt, error) { return nil, errTest },
		"writer": func(*toc.Entry) (io.WriterAt, error) { return broken{errTest}, nil },
	} {
		if _, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{Data: data}); !errors.Is(err, errTest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	data := func(*toc.Entry) (io.WriterAt, error) { cancel(); return new(counter), nil }
	if _, _, err := Scan(ctx, bytes.NewReader(layer), Options{Data: data}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type broken struct{ err error }

func (b broken) WriteAt([]byte, int64) (int, error) { return 0, b.err }

// FuzzScan wants of every layer that archive/tar and Scan both take the same
// names, metadata and data; what only one of them takes is no matter here, but must
// end well.
func FuzzScan(f *testing.F) {
	f.Add(toctest.Tar(f, []toctest.File{toctest.Dir("d"), toctest.Reg("d/f", []byte("data")), toctest.Reg(strings.Repeat("l", 150), nil)}))
	torture := toctest.Torture() // its large files are of no use here
	f.Add(toctest.Tar(f, torture[8:len(torture)-1]))
	for _, layer := range sparseLayers() {
		f.Add(layer)
	}
	f.Add(pack(f, toc.Gzip, new(raw).header('0', "f", 1, nil).data("x").end()))
	f.Add(pack(f, toc.Zstd, new(raw).header('0', "f", 1, nil).data("x").end()))
	f.Fuzz(func(t *testing.T, layer []byte) {
		if len(layer) > 1<<17 {
			return
		}
		fixSums(layer)
		got, _, err := Scan(t.Context(), bytes.NewReader(layer), Options{MaxSize: 1 << 24})
		if err != nil {
			return
		}
		if err := got.Validate(); err != nil {
			t.Fatal(err)
		}
		if codec, _ := sniffed(layer); codec != toc.Stored || got.DeviceSize() > 1<<24 {
			return
		}
		want, ok := reference(layer)
		if !ok {
			return
		}
		toctest.Compare(t, toctest.Got(t, got, layer), want)
	})
}

// fixSums makes the checksum of every block that may be a header right.
func fixSums(layer []byte) {
	for b := layer; len(b) >= blockSize; b = b[blockSize:] {
		if string(b[257:262]) != "ustar" {
			continue
		}
		sum := 8 * int(' ')
		for i, c := range b[:blockSize] {
			if i < 148 || i >= 156 {
				sum += int(c)
			}
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
}
