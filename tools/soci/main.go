// Command soci drives SOCI's own library for the tests: what its tool does only
// beside a containerd that runs (soci create, soci ztoc get-file), it does with
// files. What soci convert --standalone does is left to the tool itself.
//
//	soci ztoc LAYER SPAN-SIZE gzip|uncompressed OUT     make the zTOC of a layer
//	soci get LAYER ZTOC < NAMES                         print "sha256 size name" of files
//	soci info ZTOC                                      print what a zTOC says, as JSON
//	soci create LAYOUT SPAN-SIZE MIN-LAYER-SIZE OUT     make the v1 index of an image in
//	                                                    an OCI layout; OUT is one, too
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const tool = "AWS SOCI CLI v0.2"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soci:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 5 && args[0] == "ztoc":
		return makeZtoc(args[1], args[2], args[3], args[4])
	case len(args) == 3 && args[0] == "get":
		return get(args[1], args[2])
	case len(args) == 2 && args[0] == "info":
		return info(args[1])
	case len(args) == 5 && args[0] == "create":
		return create(args[1], args[2], args[3], args[4])
	}
	return errors.New("see the source for usage")
}

func makeZtoc(layer, span, algorithm, out string) error {
	size, err := strconv.ParseInt(span, 10, 64)
	if err != nil {
		return err
	}
	z, err := ztoc.NewBuilder(tool).BuildZtoc(layer, size, ztoc.WithCompression(algorithm))
	if err != nil {
		return err
	}
	r, _, err := ztoc.Marshal(z)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(out, data, 0o644)
}

func open(path string) (*ztoc.Ztoc, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ztoc.Unmarshal(f)
}

func get(layer, path string) error {
	z, err := open(path)
	if err != nil {
		return err
	}
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	for names := bufio.NewScanner(os.Stdin); names.Scan(); {
		data, err := z.ExtractFile(io.NewSectionReader(f, 0, int64(z.CompressedArchiveSize)), names.Text())
		if err != nil {
			return fmt.Errorf("%s: %w", names.Text(), err)
		}
		// ExtractFile drops the checkpoints of its own copy only.
		fmt.Printf("%x %d %s\n", sha256.Sum256(data), len(data), names.Text())
	}
	return nil
}

func info(path string) error {
	z, err := open(path)
	if err != nil {
		return err
	}
	gz, err := z.Zinfo()
	if err != nil {
		return err
	}
	defer gz.Close()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"version": z.Version, "tool": z.BuildToolIdentifier, "span_size": gz.SpanSize(), "spans": z.MaxSpanID + 1,
		"files": len(z.FileMetadata), "compressed": z.CompressedArchiveSize, "uncompressed": z.UncompressedArchiveSize,
	})
}

func create(layout, span, least, out string) error {
	ctx := context.Background()
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) != 1 {
		return fmt.Errorf("index.json: %d manifests: %w", len(index.Manifests), err)
	}
	spanSize, err := strconv.ParseInt(span, 10, 64)
	if err != nil {
		return err
	}
	minSize, err := strconv.ParseInt(least, 10, 64)
	if err != nil {
		return err
	}
	contents, err := local.NewStore(layout)
	if err != nil {
		return err
	}
	blobs, err := store.NewSociStore(out)
	if err != nil {
		return err
	}
	db, err := soci.NewDB(filepath.Join(out, "artifacts.db"))
	if err != nil {
		return err
	}
	b, err := soci.NewIndexBuilder(contents, blobs, soci.WithArtifactsDb(db), soci.WithSpanSize(spanSize), soci.WithMinLayerSize(minSize))
	if err != nil {
		return err
	}
	made, err := b.Build(ctx, images.Image{Target: index.Manifests[0]}, soci.WithPlatform(platforms.MustParse("linux/amd64")))
	if err != nil {
		return err
	}
	fmt.Println(made.Desc.Digest)
	return nil
}
