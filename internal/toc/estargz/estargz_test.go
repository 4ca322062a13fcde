package estargz

import (
	"bytes"
	"io"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// build makes an eStargz layer of a tar, and the annotations that go with it.
func build(t testing.TB, layer []byte, opts ...stargz.Option) (*toctest.Blob, map[string]string) {
	t.Helper()
	// Only speed counts here, and the same layer on every machine.
	opts = append([]stargz.Option{stargz.WithCompressionLevel(1), stargz.WithParallelism(2)}, opts...)
	b, err := stargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return &toctest.Blob{Bytes: blob}, map[string]string{TOCDigest: b.TOCDigest().String()}
}

func TestTortureLayerReadsAsTar(t *testing.T) {
	layer := toctest.Tar(t, toctest.Torture())
	want := toctest.Want(t, layer, toctest.Loss{Fractions: true, Bytes: true})
	for name, opts := range map[string][]stargz.Option{
		"usual":          nil,
		"small chunks":   {stargz.WithChunkSize(100_000)},
		"shared members": {stargz.WithMinChunkSize(1 << 20), stargz.WithChunkSize(300_000)},
		"prioritized":    {stargz.WithPrioritizedFiles([]string{"etc/passwd"})},
	} {
		t.Run(name, func(t *testing.T) {
			blob, annotations := build(t, layer, opts...)
			got, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: annotations})
			if err != nil {
				t.Fatal(err)
			}
			if !got.Verified || got.Digest != annotations[TOCDigest] {
				t.Errorf("%v, %s", got.Verified, got.Digest)
			}
			toctest.Compare(t, toctest.Got(t, got.TOC, blob.Bytes), want)
			if n := blob.Requests.Load(); n != 1 || blob.Open.Load() != 0 {
				t.Errorf("%d requests, %d readers open", n, blob.Open.Load())
			}
			for _, e := range got.TOC.Entries {
				if strings.HasSuffix(e.Name, ".landmark") {
					t.Errorf("%q is part of the image", e.Name)
				}
			}
		})
	}
}
