package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// inMemory is a file of an archive. It wants to be asked for what it has.
type inMemory struct {
	t *testing.T
	b []byte
}

func (m inMemory) Size() int64  { return int64(len(m.b)) }
func (m inMemory) Close() error { return nil }

func (m inMemory) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > m.Size()-n {
		m.t.Fatalf("[%d,+%d) of %d bytes is asked for", off, n, m.Size())
	}
	return io.NopCloser(bytes.NewReader(m.b[off : off+n])), nil
}

// FuzzArchive wants an end to every file that is said to be of docker save, and that the
// layers of an image lie in it.
func FuzzArchive(f *testing.F) {
	var saved bytes.Buffer
	w := tar.NewWriter(&saved)
	for name, text := range map[string]string{
		"manifest.json": `[{"Config":"c.json","RepoTags":["a:latest"],"Layers":["l/layer.tar"]}]`,
		"c.json":        `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["` + someDigest + `"]}}`,
		"l/layer.tar":   "layer",
	} {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text))})
		if _, e := io.WriteString(w, text); errors.Join(err, e) != nil {
			f.Fatal(err, e)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(saved.Bytes(), "")
	f.Add(saved.Bytes(), "a")
	f.Fuzz(func(t *testing.T, b []byte, tag string) {
		img, err := readArchive(t.Context(), inMemory{t, b}, reference{path: "a.tar", tag: tag}, Options{})
		if err != nil {
			return
		}
		defer func() {
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		}()
		for _, l := range img.blobs.(*archive).layers {
			if l.off < 0 || l.size < 0 || l.off > int64(len(b))-l.size {
				t.Errorf("a layer at %+v of %d bytes", l, len(b))
			}
		}
	})
}

// FuzzLayers wants of what a manifest and a configuration say together layers that are
// whole, and of lists of manifests an end.
func FuzzLayers(f *testing.F) {
	f.Add(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`","size":1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+someDigest+`","size":1}]}`,
		`{"os":"linux","architecture":"arm","variant":"v6","rootfs":{"type":"layers","diff_ids":["`+someDigest+`"]}}`, "linux/arm")
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`, "{}", "linux/amd64")
	f.Fuzz(func(t *testing.T, text, config, asked string) {
		d, isIndex, err := parseDocument([]byte(text), v1.MediaTypeImageIndex)
		if err != nil {
			return
		}
		if p, err := parsePlatform(asked); err == nil && isIndex {
			for _, m := range d.Manifests {
				_ = p.runs(platformOf(m.Platform))
			}
		}
		if isIndex {
			return
		}
		layers, _, err := layersOf(d, []byte(config))
		if err != nil {
			return
		}
		if len(layers) != len(d.Layers) {
			t.Fatalf("%d layers of %d", len(layers), len(d.Layers))
		}
		for _, l := range layers {
			if l.Digest.Validate() != nil || l.DiffID.Validate() != nil || l.Size < 0 {
				t.Errorf("%+v", l)
			}
		}
	})
}
