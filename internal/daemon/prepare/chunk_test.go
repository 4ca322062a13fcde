package prepare

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	stargzchunked "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/estargz"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

type compression struct {
	*stargzchunked.Compressor
	*stargzchunked.Decompressor
}

// built is a layer with chunks of that size, as stargz-snapshotter makes it.
func built(t testing.TB, format Format, tar []byte, chunk int) ([]byte, map[string]string) {
	t.Helper()
	annotations := make(map[string]string)
	options := []stargz.Option{stargz.WithChunkSize(chunk), stargz.WithCompressionLevel(gzip.NoCompression)}
	if format == ZstdChunked {
		options = append(options, stargz.WithCompression(compression{
			&stargzchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations}, &stargzchunked.Decompressor{},
		}))
	}
	z, err := stargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), options...)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	annotations[estargz.TOCDigest] = z.TOCDigest().String()
	return data, annotations
}

// A layer with a chunk that is too large to be fetched alone is read whole.
func TestLayersOfLargeChunksAreScanned(t *testing.T) {
	large := toctest.Random(1, device.MaxChunk+1)
	tar := toctest.Tar(t, []toctest.File{toctest.Reg("large", large), toctest.Reg("small", []byte("small"))})
	for _, format := range []Format{EStargz, ZstdChunked} {
		for name, chunk := range map[string]int{"too large": len(large), "largest": device.MaxChunk} {
			t.Run(string(format)+"/"+name, func(t *testing.T) {
				b := newBench(t)
				data, annotations := built(t, format, tar, chunk)
				img := b.image("one/a:v1", layer{data: data})
				img.Layers[0].Annotations = annotations
				p := b.prepare(img, Asked{Ref: "a"}, 1)
				l := p.Layers[0]
				if chunk == device.MaxChunk {
					if l.Format != format || l.Why != "" || !l.Verified || p.Sequential {
						t.Errorf("%+v", l)
					}
					return
				}
				if l.Format != Scanned || !l.Verified || p.Sequential ||
					!strings.Contains(l.Why, string(format)) || !strings.Contains(l.Why, "16777217 bytes") {
					t.Errorf("%+v", l)
				}
				o, err := b.root.Object(l.Device)
				if err != nil {
					t.Fatal(err)
				}
				// A mark of the format keeps its place, before the first file.
				got, err := os.ReadFile(o.DataPath())
				if err != nil || !o.Complete() || !bytes.Equal(got[4096:4096+len(large)], large) {
					t.Errorf("other data, complete %v, %v", o.Complete(), err)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
				// It is known why, also in another image of the layer.
				other := b.image("two/a:v1", layer{data: data})
				other.Layers[0].Annotations = annotations
				if again := b.prepare(other, Asked{Ref: "b"}, 0).Layers[0]; again != l {
					t.Errorf("%+v, want %+v", again, l)
				}
			})
		}
	}
}

// Wrong bytes are found out where such a layer is read whole, and nothing is kept.
func TestLayersOfLargeChunksAreVerified(t *testing.T) {
	tar := toctest.Tar(t, []toctest.File{toctest.Reg("large", toctest.Random(1, device.MaxChunk+1))})
	right, annotations := built(t, EStargz, tar, device.MaxChunk+1)
	wrong := bytes.Clone(right)
	wrong[1<<20] ^= 1
	b := newBench(t)
	img := b.image("one/a:v1", layer{data: right})
	img.Layers[0].Annotations = annotations
	b.blobs[img.Ref+img.Layers[0].Digest.String()] = wrong
	if p, err := b.try(img, Asked{Ref: "a"}); err == nil {
		t.Errorf("%+v", p)
	}
	list, err := b.root.List()
	if err != nil || len(list) > 0 {
		t.Errorf("kept: %v, %v", list, err)
	}
}

// A layer that could be read in parts, from a registry that has none, says so.
func TestLayersWithoutRangesSayWhyTheyAreScanned(t *testing.T) {
	b := newBench(t)
	b.sequential.Store(true)
	data, digest := estargzOf(t, "data")
	for _, from := range []layer{{data: data, toc: digest}, {data: tarOf(t, "data")}} {
		img := b.image("one/a:v1", from)
		l := b.prepare(img, Asked{Ref: string(img.Digest)}, 1).Layers[0]
		if l.Format != Scanned || (l.Why != "") != (from.toc != "") {
			t.Errorf("%+v", l)
		}
	}
}

// A layer with names that JSON cannot have is read whole: they would be others, and
// two of them one.
func TestLayersOfNamesThatAreNotUTF8AreScanned(t *testing.T) {
	tar := toctest.Tar(t, []toctest.File{toctest.Reg("caf\xe9", []byte("one")), toctest.Reg("caf\xff", []byte("two"))})
	for _, format := range []Format{EStargz, ZstdChunked} {
		t.Run(string(format), func(t *testing.T) {
			b := newBench(t)
			data, annotations := built(t, format, tar, 0)
			img := b.image("one/a:v1", layer{data: data})
			img.Layers[0].Annotations = annotations
			p := b.prepare(img, Asked{Ref: "a"}, 1)
			l := p.Layers[0]
			if l.Format != Scanned || !l.Verified || !strings.Contains(l.Why, string(format)) || p.Files != 2 {
				t.Errorf("%+v, %d files", l, p.Files)
			}
			kept, _, err := b.loadTOC(l.Device)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range kept.Entries {
				if e.Type == toc.Regular {
					names = append(names, e.Name)
				}
			}
			if !slices.Equal(names, []string{"caf\xe9", "caf\xff"}) {
				t.Errorf("%q", names)
			}
		})
	}
}
