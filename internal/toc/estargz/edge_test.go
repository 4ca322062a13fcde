package estargz

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

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// many is a layer whose table of contents is larger than what a Layer keeps.
func many(t testing.TB, n int) []byte {
	t.Helper()
	files := make([]toctest.File, n)
	for i := range files {
		// Names that do not compress fill it sooner.
		name := fmt.Sprintf("%x", toctest.Random(uint64(i), 600))
		files[i] = toctest.Reg("usr/"+strings.Join([]string{name[:240], name[240:480], name[480:720], name[720:960], name[960:]}, "/"),
			toctest.Random(uint64(i), 20))
	}
	return toctest.Tar(t, files)
}

func TestLargeTableTakesTwoRequests(t *testing.T) {
	layer := many(t, 600)
	blob, annotations := build(t, layer)
	l := &toc.Layer{Blob: blob, Annotations: annotations}
	got, err := Read(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	toctest.Compare(t, toctest.Got(t, got.TOC, blob.Bytes), toctest.Want(t, layer, toctest.Loss{Fractions: true}))
	if n := blob.Requests.Load(); n != 2 || blob.Open.Load() != 0 {
		t.Errorf("%d requests, %d readers open", n, blob.Open.Load())
	}
	at, n, err := position(blob.Bytes, blob.Size())
	if err != nil || blob.Sent.Load() != blob.Size()-at || n < 256<<10 {
		t.Errorf("%d bytes sent for a table of %d: %v", blob.Sent.Load(), n, err)
	}
}

// layer wraps JSON in a blob with the given footer.
func layer(t testing.TB, name, text string, footer func(at int) []byte) *toctest.Blob {
	t.Helper()
	var b bytes.Buffer
	pack := func(p []byte) {
		z := gzip.NewWriter(&b)
		_, err := z.Write(p)
		if err = errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
	}
	pack([]byte("a tar header"))
	at := b.Len()
	var file bytes.Buffer
	w := tar.NewWriter(&file)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, err := io.WriteString(w, text)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	pack(file.Bytes())
	b.Write(footer(at))
	return &toctest.Blob{Bytes: b.Bytes()}
}

func footer51(at int) []byte {
	return stargz.CreateGzipFooter([]byte(fmt.Sprintf("SG\x16\x00%016xSTARGZ", at)))
}

func footer47(at int) []byte {
	return stargz.CreateGzipFooter([]byte(fmt.Sprintf("%016xSTARGZ", at)))
}

const empty = `{"version":1,"entries":[]}`

func TestBothFooters(t *testing.T) {
	for _, f := range []func(int) []byte{footer51, footer47} {
		got, err := Read(t.Context(), &toc.Layer{Blob: layer(t, tocName, empty, f)})
		if err != nil || got.Verified || len(got.TOC.Entries) != 0 {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

func TestOtherLayersAreNotOfThisFormat(t *testing.T) {
	plain := toctest.Tar(t, toctest.Torture()[:3])
	for name, b := range map[string][]byte{
		"nothing": {}, "short": []byte("x"), "tar": plain, "zeros": make([]byte, 1000),
		"no magic":     layer(t, tocName, empty, func(at int) []byte { return bytes.Replace(footer51(at), []byte("STARGZ"), []byte("STARGX"), 1) }).Bytes,
		"external TOC": layer(t, tocName, empty, func(int) []byte { return stargz.CreateGzipFooter([]byte("SG\x11\x00STARGZEXTERNALTOC")) }).Bytes,
	} {
		if got, err := Read(t.Context(), &toc.Layer{Blob: &toctest.Blob{Bytes: b}}); !errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	at := func(n string) func(int) []byte {
		return func(int) []byte { return stargz.CreateGzipFooter([]byte("SG\x16\x00" + n + "STARGZ")) }
	}
	for name, b := range map[string]*toctest.Blob{
		"offset 0":     layer(t, tocName, empty, at("0000000000000000")),
		"past the end": layer(t, tocName, empty, at("00000000ffffffff")),
		"negative":     layer(t, tocName, empty, at("ffffffffffffffff")),
		"no number":    layer(t, tocName, empty, at("000000000000000-")),
		"other file":   layer(t, "other.json", empty, footer51),
		"no table":     layer(t, tocName, "[]", footer51),
		"large table":  {Bytes: append(make([]byte, toc.MaxPacked+1000), footer51(10)...)},
		"bomb":         bomb(t),
	} {
		got, err := Read(t.Context(), &toc.Layer{Blob: b})
		if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if b.Open.Load() != 0 {
			t.Errorf("%s: %d readers open", name, b.Open.Load())
		}
	}
}

// bomb is a layer whose table of contents says that it is too large.
func bomb(t testing.TB) *toctest.Blob {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("data")
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: tocName, Size: toc.MaxJSON + 1, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	b.Write(footer51(4))
	return &toctest.Blob{Bytes: b.Bytes()}
}

func TestWrongDigestIsRefused(t *testing.T) {
	blob, annotations := build(t, toctest.Tar(t, toctest.Torture()[:4]))
	annotations[TOCDigest] = "sha256:" + strings.Repeat("0", 64)
	if _, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: annotations}); !errors.Is(err, toc.ErrDigest) {
		t.Error(err)
	}
	got, err := Read(t.Context(), &toc.Layer{Blob: blob})
	if err != nil || got.Verified {
		t.Errorf("without a digest: %+v, %v", got, err)
	}
}

// faulty is a blob whose readers fail after a while.
type faulty struct {
	*toctest.Blob
	err   error
	after int64
}

func (f *faulty) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if f.after < 0 {
		return nil, f.err
	}
	r, err := f.Blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, f.after), iotest.ErrReader(f.err)), r}, nil
}

func TestErrorsOfTheSourceComeBack(t *testing.T) {
	blob, annotations := build(t, many(t, 600))
	errTest := errors.New("test")
	for _, after := range []int64{-1, 0, 100, 10_000, 256 << 10} {
		f := &faulty{blob, errTest, after}
		l := &toc.Layer{Blob: f, Annotations: annotations}
		if after == 256<<10 { // the first request is whole, the second is not
			if _, err := l.Tail(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			f.after = 1000
		}
		if _, err := Read(t.Context(), l); !errors.Is(err, errTest) || errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("after %d: %v", after, err)
		}
		if n := blob.Open.Load(); n != 0 {
			t.Errorf("after %d: %d readers open", after, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, &toc.Layer{Blob: blob}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzRead wants an end to every blob, and a valid TOC or an error of a kind.
func FuzzRead(f *testing.F) {
	blob, _ := build(f, toctest.Tar(f, []toctest.File{toctest.Dir("d"), toctest.Reg("d/f", []byte("data"))}))
	f.Add(blob.Bytes)
	f.Add(layer(f, tocName, empty, footer47).Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Read(t.Context(), &toc.Layer{Blob: &toctest.Blob{Bytes: b}})
		if err == nil {
			err = got.TOC.Validate()
		} else if errors.Is(err, toc.ErrNotFormat) || got != nil {
			return
		}
		if got != nil && err != nil {
			t.Error(err)
		}
	})
}
