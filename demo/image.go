package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	fast "github.com/klauspost/compress/gzip"
)

// hello is what bash runs.
const hello = `#!/bin/bash
. /etc/os-release
echo "bash $BASH_VERSION on $PRETTY_NAME, $(ls /usr/bin | wc -l) programs in /usr/bin"
`

// choose chooses the files of the image.
func (d *demo) choose(ctx context.Context) (*tree, error) {
	t := newTree()
	var err error
	switch d.root {
	case "debian":
		err = d.debian(ctx, t)
	case "machine":
		err = machine(ctx, t, d.size)
	default:
		err = fmt.Errorf("-root %s: neither machine nor debian", d.root)
	}
	if err != nil {
		return nil, err
	}
	t.layer("go")
	if err := goroot(ctx, t, d.size); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/usr/share", "/usr/lib"} { // where Go is small, or not there
		if err := t.addAll(ctx, dir, dir[1:], d.size, nothing); err != nil {
			return nil, err
		}
	}
	if len(t.layers[len(t.layers)-1].entries) == 0 { // the image is full
		t.layers = t.layers[:len(t.layers)-1]
	}
	t.layer("an application")
	t.make(tar.Header{Typeflag: tar.TypeReg, Name: "app/hello", Mode: 0o755}, hello)
	return t, nil
}

// packed is a layer as it lies in the registry.
type packed struct {
	path           string
	digest, diffID v1.Hash
	size           int64
	toc            string // eStargz: the digest of its table of contents
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

// keep writes what write gives to the registry's files.
func (d *demo) keep(write func(io.Writer) error) (p *packed, err error) {
	f, err := os.CreateTemp(d.blobs(), "new-")
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	err = write(io.MultiWriter(f, h))
	info, e := f.Stat()
	if err := errors.Join(err, e, f.Close()); err != nil {
		return nil, err
	}
	p = &packed{path: filepath.Join(d.blobs(), hashOf(h).Hex), digest: hashOf(h), size: info.Size()}
	return p, os.Rename(f.Name(), p.path)
}

// packGzip packs a tar as an ordinary layer.
func (d *demo) packGzip(ctx context.Context, tarFile *os.File) (*packed, error) {
	plain := sha256.New()
	p, err := d.keep(func(out io.Writer) error {
		w, err := fast.NewWriterLevel(out, fast.BestSpeed)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.MultiWriter(w, plain), untilDone{ctx, tarFile})
		return errors.Join(err, w.Close())
	})
	if err == nil {
		p.diffID = hashOf(plain)
	}
	return p, err
}

// packEStargz packs a tar so that it can be read at any place.
func (d *demo) packEStargz(ctx context.Context, tarFile *os.File) (p *packed, err error) {
	info, err := tarFile.Stat()
	if err != nil {
		return nil, err
	}
	compression := &pooled{GzipCompressor: estargz.NewGzipCompressorWithLevel(fast.BestSpeed)}
	b, err := estargz.Build(io.NewSectionReader(tarFile, 0, info.Size()), estargz.WithContext(ctx),
		estargz.WithCompression(compression), estargz.WithChunkSize(256<<10))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	p, err = d.keep(func(out io.Writer) error {
		_, err := io.Copy(out, untilDone{ctx, b})
		return err
	})
	if err != nil {
		return nil, err
	}
	p.toc = b.TOCDigest().String()
	p.diffID, err = v1.NewHash(b.DiffID().String())
	return p, err
}

// pooled is eStargz's compression with writers that are used again: there is one
// for each of many thousand files, and to make them takes longer than to compress.
type pooled struct {
	*estargz.GzipCompressor
	estargz.GzipDecompressor
	writers sync.Pool
}

// Writer is estargz.Compressor's.
func (p *pooled) Writer(to io.Writer) (estargz.WriteFlushCloser, error) {
	if w, ok := p.writers.Get().(*pooledWriter); ok {
		w.Reset(to)
		return w, nil
	}
	w, err := fast.NewWriterLevel(to, fast.BestSpeed)
	return &pooledWriter{w, p}, err
}

// Reader is estargz.Decompressor's.
func (p *pooled) Reader(from io.Reader) (io.ReadCloser, error) { return fast.NewReader(from) }

type pooledWriter struct {
	*fast.Writer
	pool *pooled
}

// Close is io.Closer's; the writer is used again.
func (w *pooledWriter) Close() error {
	err := w.Writer.Close()
	w.pool.writers.Put(w)
	return err
}

// untilDone reads until the context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

// Read is io.Reader's.
func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, u.ctx.Err()
	}
	return u.r.Read(p)
}

// tocDigest is the annotation of a layer that tells what its table of contents
// is (github.com/containerd/stargz-snapshotter, docs/estargz.md).
const tocDigest = estargz.TOCJSONDigestAnnotation

// pack packs the tars as an image.
func pack(ctx context.Context, tars []string, format func(context.Context, *os.File) (*packed, error)) (v1.Image, int64, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var size int64
	for _, name := range tars {
		f, err := os.Open(name)
		if err != nil {
			return nil, 0, err
		}
		p, err := format(ctx, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, 0, fmt.Errorf("pack a layer: %w", err)
		}
		size += p.size
		add := mutate.Addendum{Layer: p}
		if p.toc != "" {
			add.Annotations = map[string]string{tocDigest: p.toc}
		}
		if img, err = mutate.Append(img, add); err != nil {
			return nil, 0, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, 0, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = platform()
	img, err = mutate.ConfigFile(img, config)
	return img, size, err
}
