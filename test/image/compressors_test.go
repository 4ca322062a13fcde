package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// compressor makes gzip data in its own way.
type compressor struct {
	name string
	pack func(t testing.TB, data []byte) []byte
}

// flushing has zlib begin anew, without what came before, every 200,000 bytes.
const flushing = `
import sys, zlib
c = zlib.compressobj(6, zlib.DEFLATED, 31)
while data := sys.stdin.buffer.read(200_000):
    sys.stdout.buffer.write(c.compress(data))
    sys.stdout.buffer.write(c.flush(zlib.Z_FULL_FLUSH))
sys.stdout.buffer.write(c.flush())
`

var compressors = []compressor{
	{"compress/gzip", func(t testing.TB, data []byte) []byte { return zipped(t, data, gzip.DefaultCompression) }},
	{"gzip -1", piped("gzip", "-1")},
	{"gzip -9", piped("gzip", "-9")},
	{"pigz", piped("pigz")},
	{"full flushes", piped("python3", "-c", flushing)},
	{"members", inMembers},
	{"stored", func(t testing.TB, data []byte) []byte { return zipped(t, data, gzip.NoCompression) }},
}

func zipped(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func piped(name string, args ...string) func(testing.TB, []byte) []byte {
	return func(t testing.TB, data []byte) []byte {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(data), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return out
	}
}

// inMembers is what bgzip makes: members of up to 64 KiB with a field of their own
// in the header, the last one empty.
func inMembers(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for last := false; !last; {
		part := data[:min(len(data), 0xff00)]
		data, last = data[len(part):], len(part) == 0
		w := gzip.NewWriter(&b)
		w.Extra = []byte{'B', 'C', 2, 0, 0, 0}
		_, err := w.Write(part)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// byCompressors is an image whose layers are made by one compressor after the other.
func byCompressors(t testing.TB, tars [][]byte) *packed {
	t.Helper()
	p := &packed{format: formatOf("gzip")}
	for n, data := range tars {
		c := compressors[n%len(compressors)]
		l := &layer{blob: c.pack(t, data), tar: data, mediaType: types.OCILayer}
		l.digest, l.diffID = sum(l.blob), sum(data) // they are asked for often
		t.Logf("layer %d by %s: %d of %d KiB", n, c.name, len(l.blob)>>10, len(data)>>10)
		p.layers = append(p.layers, l)
	}
	p.build(t)
	return p
}

// placed is a file with its data.
type placed struct {
	path string
	data []byte
}

// placedIn are the files of a tree whose layers are tars without whiteouts.
func placedIn(t testing.TB, tars [][]byte, tree *node) (files []placed) {
	t.Helper()
	all := make(map[string][]byte)
	for _, data := range tars {
		in := bytes.NewReader(data)
		for r := tar.NewReader(in); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
				t.Fatal(err)
			}
			name := path.Clean("/" + h.Name)[1:]
			switch off := len(data) - in.Len(); h.Typeflag {
			case tar.TypeReg:
				all[name] = data[off : off+int(h.Size)]
			case tar.TypeLink:
				all[name] = all[path.Clean("/" + h.Linkname)[1:]]
			}
		}
	}
	for _, f := range filesOf(tree) {
		if int64(len(all[f.Path])) != f.Size {
			t.Fatalf("%s has %d bytes in a tar, and %d in the tree", f.Path, len(all[f.Path]), f.Size)
		}
		if f.Size > 0 {
			files = append(files, placed{f.Path, all[f.Path]})
		}
	}
	return files
}

// anyRange is a range of n bytes, shorter ones as often as longer ones.
func anyRange(rng *rand.Rand, n int) (off, end int) {
	off = rng.IntN(n)
	return off, off + 1 + rng.IntN(min(n-off, 1<<rng.IntN(20)))
}

// readRanges reads ranges of files with so many readers at once; all are right.
func readRanges(t testing.TB, dir string, files []placed, readers, each int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	for n := range readers {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		all.Go(func() {
			for range each {
				f := files[rng.IntN(len(files))]
				off, end := anyRange(rng, len(f.data))
				if err := readRange(filepath.Join(dir, f.path), off, f.data[off:end]); err != nil {
					t.Errorf("%s [%d,%d): %v", f.path, off, end, err)
				}
			}
		})
	}
	all.Wait()
}

var errWrong = errors.New("wrong bytes")

func readRange(name string, off int, want []byte) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, int64(off))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errWrong
	}
	return nil
}

// bySpans is a zTOC as spans.Index.
type bySpans struct{ *soci.Reader }

func (x bySpans) Size() int64  { return x.Spans().Uncompressed }
func (x bySpans) Close() error { return nil }

func (x bySpans) Known(off int64) (from, end int64, known bool) { return x.Place(off) }

func (x bySpans) Find(ctx context.Context, off int64) (spans.Span, error) {
	found, err := x.Covering(ctx, off, off+1)
	if err != nil {
		return spans.Span{}, err
	}
	s := &found[0]
	return spans.Span{From: s.Checkpoint, End: min(s.End, x.Size()), InEnd: s.BlobOff + s.BlobLen, Digest: s.Digest}, nil
}

// decodeRanges decodes n ranges of a layer, each by itself, as its zTOC says.
func decodeRanges(t testing.TB, l *layer, spanSize int64, n int) {
	t.Helper()
	data, err := soci.Build(t.Context(), bytes.NewReader(l.blob), soci.BuildOptions{SpanSize: spanSize})
	if err != nil {
		t.Fatal(err)
	}
	z, err := soci.Open(t.Context(), mem.New(data), int64(len(l.blob)))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := soci.NewReader(z.Spans, mem.New(data))
	if err != nil {
		t.Fatal(err)
	}
	var blob source.Blob = spans.New(mem.New(l.blob), bySpans{reader}, spans.NewGate())
	seed := rand.Uint64()
	t.Logf("seed %d, %d spans", seed, z.Spans.Count())
	const workers = 4
	var all sync.WaitGroup
	for w := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		all.Go(func() {
			for range n / workers {
				off, end := anyRange(rng, int(blob.Size()))
				body, err := blob.ReadRange(t.Context(), int64(off), int64(end-off))
				if err != nil {
					t.Errorf("[%d,%d): %v", off, end, err)
					continue
				}
				got, err := io.ReadAll(body)
				if err = errors.Join(err, body.Close()); err == nil && !bytes.Equal(got, l.tar[off:end]) {
					err = errWrong
				}
				if err != nil {
					t.Errorf("[%d,%d): %v", off, end, err)
				}
			}
		})
	}
	all.Wait()
	if err := blob.Close(); err != nil {
		t.Error(err)
	}
}

// readIndexed indexes an image whose layers are made by different compressors, and
// has 16 readers read it: ranges first, then all files. least is how large it must be,
// spanSize that of the spans of which ranges are decoded one by one.
func readIndexed(t *testing.T, tars [][]byte, least int, spanSize int64, ranges int, flags ...string) {
	t.Helper()
	image := byCompressors(t, tars)
	size := 0
	for _, l := range image.layers {
		size += len(l.blob)
	}
	t.Logf("%d bytes of layers", size)
	if size < least {
		t.Errorf("that is less than %d", least)
	}
	r := ocitest.New(t)
	ref := image.push(t, r)
	tree := image.tree(t)
	files := placedIn(t, tars, tree)
	for version, suffix := range map[string]string{"v1": "", "v2": "-soci"} {
		t.Run("soci "+version, func(t *testing.T) {
			const readers = 16
			m := start(t, "")
			began := time.Now()
			m.Lacuna(append(append([]string{"index", "--" + version, "--push"}, flags...), ref)...)
			t.Logf("indexed in %v", time.Since(began).Round(time.Millisecond))
			dir := m.mount(ref+suffix, "mnt")
			for n, f := range m.formatsOf() {
				if f != "soci "+version {
					t.Errorf("layer %d is %s", n, f)
				}
			}
			readRanges(t, dir, files, readers, ranges/readers)
			all := startReaders(t, order{Dir: dir, Files: filesOf(tree), Readers: readers, Seed: rand.Uint64(), Once: true}).wait(20 * time.Minute)
			all.wantRight(t)
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
	for n, l := range image.layers {
		t.Run("ranges/"+strings.ReplaceAll(compressors[n%len(compressors)].name, "/", " "), func(t *testing.T) {
			decodeRanges(t, l, spanSize, ranges)
		})
	}
}

// Layers of every compressor are read right by their indices.
func TestCompressorsReadAtRandom(t *testing.T) {
	var tars [][]byte
	for n, c := range compressors {
		members := []member{file("shared", c.name)}
		for i, size := range []int{1, 700, 5000, 200_000, 0, 65536, 30_000, 400_001, 12, 100_000} {
			data := toctest.Random(uint64(100*n+i), size)
			if i%3 > 0 { // some of it compresses
				for k := range data {
					data[k] = data[k]&15 + 'a'
				}
			}
			members = append(members, file(path.Join(c.name, string(rune('a'+i))), string(data)))
		}
		tars = append(tars, tarOf(t, members...))
	}
	readIndexed(t, tars, 1<<20, 64<<10, 320, "--span-size", "64KiB", "--min-layer-size", "0B")
}
