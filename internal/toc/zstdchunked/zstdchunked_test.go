package zstdchunked

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	stargzchunked "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type compression struct {
	*stargzchunked.Compressor
	*stargzchunked.Decompressor
}

// build makes a zstd:chunked layer as stargz-snapshotter does, and the
// annotations that go with it.
func build(t testing.TB, layer []byte, opts ...stargz.Option) (*toctest.Blob, map[string]string) {
	t.Helper()
	annotations := make(map[string]string)
	opts = append(opts, stargz.WithCompression(compression{
		&stargzchunked.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations}, &stargzchunked.Decompressor{},
	}))
	b, err := stargz.Build(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(b)
	if err = errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	annotations[tocDigest] = b.TOCDigest().String()
	return &toctest.Blob{Bytes: blob}, annotations
}

func TestTortureLayerReadsAsTar(t *testing.T) {
	layer := toctest.Tar(t, toctest.Torture())
	blob, full := build(t, layer)
	podmans := make(map[string]string)
	for k, v := range full {
		podmans[strings.Replace(k, "io.containers.", "io.github.containers.", 1)] = v
	}
	delete(podmans, tocDigest)
	onlyDigest := map[string]string{tocDigest: full[tocDigest]}
	want := toctest.Want(t, layer, toctest.Loss{Fractions: true, Bytes: true})
	for name, annotations := range map[string]map[string]string{
		"stargz": full, "podman": podmans, "only the text's digest": onlyDigest, "none": nil,
	} {
		t.Run(name, func(t *testing.T) {
			blob := &toctest.Blob{Bytes: blob.Bytes}
			got, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: annotations})
			if err != nil {
				t.Fatal(err)
			}
			toctest.Compare(t, toctest.Got(t, got.TOC, blob.Bytes), want)
			if n := blob.Requests.Load(); n != 1 || blob.Open.Load() != 0 {
				t.Errorf("%d requests, %d readers open", n, blob.Open.Load())
			}
			if got.Verified != (annotations != nil) {
				t.Errorf("verified: %v", got.Verified)
			}
			if sum := full["io.containers."+checksum]; got.Digest != sum {
				t.Errorf("digest %s, want %s", got.Digest, sum)
			}
		})
	}
}

func TestWrongChecksumIsRefused(t *testing.T) {
	blob, annotations := build(t, toctest.Tar(t, toctest.Torture()))
	for k := range annotations {
		if strings.Contains(k, "position") {
			continue
		}
		wrong := maps.Clone(annotations)
		wrong[k] = "sha256:" + strings.Repeat("0", 64)
		if _, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: wrong}); !errors.Is(err, toc.ErrDigest) {
			t.Errorf("%s: %v", k, err)
		}
	}
	if blob.Open.Load() != 0 {
		t.Errorf("%d readers open", blob.Open.Load())
	}
}
