package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// An image that is measured: largeImage has about 230 MB in 4 layers, manyImage
// 120,000 files in one, as small as those of a system; modelImage has the large files of
// largeImage alone. Files are half random bytes and half text. Names are in the order in
// which a directory is listed, as those of image builders are.
const (
	largeImage = "large"
	manyImage  = "many"
	modelImage = "model"
)

const (
	manyFiles   = 120_000
	manyInDir   = 100
	largeLayers = 4
	largeFiles  = 2500 // of each layer, besides the big one
	bigSize     = 44 << 20
)

// bigFile is the name of a layer's big file, smallFile of one of its others.
func bigFile(layer int) string { return fmt.Sprintf("layer%d/big", layer) }

func smallFile(layer, n int) string { return fmt.Sprintf("layer%d/dir%03d/file%04d", layer, n/50, n) }

// files writes one layer as a tar.
func largeLayer(w *tar.Writer, layer int) error {
	rng := rand.New(rand.NewPCG(uint64(layer), 11))
	for n := range largeFiles {
		if n == largeFiles/2 {
			if err := addFile(w, bigFile(layer), bigSize, rng); err != nil {
				return err
			}
		}
		size := int64(math.Exp(rng.NormFloat64()*1.7 + 8.7)) // median 6 KB, mean 25 KB
		if err := addFile(w, smallFile(layer, n), min(size, 4<<20), rng); err != nil {
			return err
		}
	}
	return nil
}

func modelLayer(w *tar.Writer, layer int) error {
	return addFile(w, bigFile(layer), bigSize, rand.New(rand.NewPCG(uint64(layer), 13)))
}

func manyLayer(w *tar.Writer, _ int) error {
	rng := rand.New(rand.NewPCG(1, 12))
	for n := range manyFiles {
		if err := addFile(w, fmt.Sprintf("usr/share/dir%04d/file-%06d.conf", n/manyInDir, n), rng.Int64N(4<<10), rng); err != nil {
			return err
		}
	}
	return nil
}

// addFile adds a file whose first half is random and whose second is text.
func addFile(w *tar.Writer, name string, size int64, rng *rand.Rand) error {
	err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Uid: int(size % 7),
		ModTime: time.Unix(1700000000+rng.Int64N(1e6), 0), Format: tar.FormatPAX,
	})
	if err != nil {
		return err
	}
	data := make([]byte, size)
	for i := range data[:size/2] {
		data[i] = byte(rng.Uint32())
	}
	for i, line := size/2, "a line of some text that compresses well\n"; i < size; i += int64(len(line)) {
		copy(data[i:], line)
	}
	_, err = w.Write(data)
	return err
}

// packed is a layer as it lies in the registry.
type packed struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

// These make a v1.Layer of it.
func (p *packed) Digest() (v1.Hash, error)             { return p.digest, nil }
func (p *packed) DiffID() (v1.Hash, error)             { return p.diffID, nil }
func (p *packed) Size() (int64, error)                 { return p.size, nil }
func (p *packed) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }
func (p *packed) Compressed() (io.ReadCloser, error)   { return os.Open(p.path) }
func (p *packed) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// pack makes a layer in the eStargz format.
func (b *bench) pack(layer int, write func(*tar.Writer, int) error) (p *packed, toc string, err error) {
	plain, err := os.CreateTemp(b.dir, "tar-")
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, plain.Close(), os.Remove(plain.Name())) }()
	w := tar.NewWriter(plain)
	if err := errors.Join(write(w, layer), w.Close()); err != nil {
		return nil, "", err
	}
	size, err := plain.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, "", err
	}
	built, err := estargz.Build(io.NewSectionReader(plain, 0, size), estargz.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, built.Close()) }()
	out, err := os.CreateTemp(b.dir, "layer-")
	if err != nil {
		return nil, "", err
	}
	sum := sha256.New()
	p = &packed{path: out.Name()}
	p.size, err = io.Copy(io.MultiWriter(out, sum), built)
	if err := errors.Join(err, out.Close()); err != nil {
		return nil, "", err
	}
	p.digest = hashOf(sum)
	p.diffID, err = v1.NewHash(built.DiffID().String())
	return p, built.TOCDigest().String(), err
}

// image is an image in the registry.
type image struct {
	ref    string // through the line
	layers []string
	size   int64 // of its layers
}

// image builds and pushes an image, unless the registry has it.
func (b *bench) image(what string) (*image, error) {
	if b.registry == nil {
		dir := b.path("registry")
		if b.keep != "" {
			dir = filepath.Join(b.keep, "registry")
		}
		var err error
		if b.registry, err = b.startRegistry(dir); err != nil {
			return nil, err
		}
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	options := []remote.Option{remote.WithTransport(transport), remote.WithJobs(1)}
	tag, err := name.ParseReference(b.registry.far+"/"+what+":1", name.Insecure)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(tag, options...)
	if err != nil {
		if img, err = b.build(what); err != nil {
			return nil, fmt.Errorf("build image %s: %w", what, err)
		}
		if err := remote.Write(tag, img, options...); err != nil {
			return nil, fmt.Errorf("push image %s: %w", what, err)
		}
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	out := &image{ref: b.registry.host + "/" + what + ":1"}
	for _, l := range manifest.Layers {
		out.layers = append(out.layers, l.Digest.String())
		out.size += l.Size
	}
	return out, nil
}

func (b *bench) build(what string) (v1.Image, error) {
	switch what {
	case pythonImage:
		return b.buildDebian(0)
	case pythonAlone:
		return b.buildDebian(2)
	}
	img := emptyImage()
	layers, write := 1, manyLayer
	switch what {
	case largeImage:
		layers, write = largeLayers, largeLayer
	case modelImage:
		layers, write = largeLayers, modelLayer
	}
	for n := range layers {
		p, toc, err := b.pack(n, write)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: p, Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc},
		})
		if err != nil {
			return nil, err
		}
	}
	return configured(img)
}

func emptyImage() v1.Image {
	return mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
}

// configured is img for this machine.
func configured(img v1.Image) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = runtime.GOOS, runtime.GOARCH
	return mutate.ConfigFile(img, config)
}
