package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// indexInfoCmd tells what an index says of layers.
type indexInfoCmd struct {
	Image string `arg:"" name:"IMAGE" help:"Reference of an image with an index."`
	JSON  bool   `name:"json" help:"Print JSON."`
	imageFlags
}

// Help is the long help.
func (indexInfoCmd) Help() string {
	return `Shows the index that mount would use: of each layer the zTOC, how many pieces
the layer can be read in, and how many files are listed. The zTOCs are read
whole and verified. Of a multi-platform image it is this machine's, or that of
--platform.

  # lacuna index info registry.example/app:1-soci
  linux/amd64: index v2, made by Lacuna 1
  layer sha256:5f1e2d3c4b5a  28.1 MiB: zTOC sha256:77c30a9d1a2b, 312.4 KiB
    8 spans of 4.0 MiB, 3384 files, 77.5 MiB unpacked, made by Lacuna 1
  layer sha256:0a9d1a2b77c3  1.2 KiB: no zTOC

EXIT STATUS
  0  ok
  1  the image has no index, or another error
  2  wrong usage
  4  a zTOC is not what its digest says
  5  the registry cannot be reached, or does not give the image`
}

// layerInfo is what info says of a layer.
type layerInfo struct {
	Layer        string `json:"layer"`
	Size         int64  `json:"size"`
	Ztoc         string `json:"ztoc,omitempty"`
	ZtocSize     int64  `json:"ztoc_size,omitempty"`
	Tool         string `json:"tool,omitempty"`
	Spans        int    `json:"spans,omitempty"`
	SpanSize     int64  `json:"span_size,omitempty"`
	Files        int    `json:"files,omitempty"`
	Uncompressed int64  `json:"uncompressed,omitempty"`
}

// indexInfo is what info prints as JSON.
type indexInfo struct {
	Image    string      `json:"image"`
	Digest   string      `json:"digest"`
	Platform string      `json:"platform"`
	Version  int         `json:"version"`
	Tool     string      `json:"tool"`
	Layers   []layerInfo `json:"layers"`
}

// Run is the verb.
func (c *indexInfoCmd) Run(a *app) error {
	return a.look("index info", &c.imageFlags, c.Image, func(_ context.Context, img *oci.Image, o *publish.Opened) error {
		info := indexInfo{Image: img.Ref, Digest: img.Digest.String(), Platform: img.Platform, Version: o.Index.Version, Tool: o.Index.Tool}
		for i := range o.Layers {
			l := &o.Layers[i]
			told := layerInfo{Layer: l.Digest.String(), Size: l.Size}
			if z := l.Ztoc; z != nil {
				told.Ztoc, told.ZtocSize, told.Tool = l.Info.Ztoc.String(), l.Info.Size, z.Tool
				told.Spans, told.SpanSize, told.Files, told.Uncompressed = z.Spans.Count(), z.Spans.SpanSize, len(z.Files), z.Spans.Uncompressed
			}
			info.Layers = append(info.Layers, told)
		}
		if c.JSON {
			return a.printJSON(info)
		}
		return a.print("%s", infoText(info))
	})
}

func infoText(info indexInfo) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: index v%d, made by %s\n", platformText(info.Platform), info.Version, pathText(info.Tool))
	for _, l := range info.Layers {
		fmt.Fprintf(&b, "layer %.19s  %s: ", l.Layer, sizeText(l.Size))
		if l.Ztoc == "" {
			b.WriteString("no zTOC\n")
			continue
		}
		fmt.Fprintf(&b, "zTOC %.19s, %s\n  %s of %s, %s, %s unpacked, made by %s\n", l.Ztoc, sizeText(l.ZtocSize),
			count(l.Spans, "span"), sizeText(l.SpanSize), count(l.Files, "file"), sizeText(l.Uncompressed), pathText(l.Tool))
	}
	return b.String()
}

// indexLsCmd lists the files of an image's layers.
type indexLsCmd struct {
	Image string `arg:"" name:"IMAGE" help:"Reference of an image with an index."`
	Layer string `placeholder:"DIGEST" help:"Only this layer: the digest, or its beginning."`
	imageFlags
}

// Help is the long help.
func (indexLsCmd) Help() string {
	return `Lists what the zTOCs of IMAGE list, layer by layer and in the layers' order:
modes, owners, sizes, times and names, as ls -l has them. Of a multi-platform
image it is this machine's, or that of --platform.

  # lacuna index ls registry.example/app:1-soci
  layer sha256:5f1e2d3c4b5a
  drwxr-xr-x     0/0             0 2026-01-02 15:04:05 usr/bin/
  -rwxr-xr-x     0/0       1346480 2026-01-02 15:04:05 usr/bin/bash
  lrwxrwxrwx     0/0             0 2026-01-02 15:04:05 usr/bin/sh -> bash

EXIT STATUS
  0  ok
  1  the image has no index, or another error
  2  wrong usage
  4  a zTOC is not what its digest says
  5  the registry cannot be reached, or does not give the image`
}

// Run is the verb.
func (c *indexLsCmd) Run(a *app) error {
	return a.look("index ls", &c.imageFlags, c.Image, func(_ context.Context, img *oci.Image, o *publish.Opened) error {
		found := false
		for i := range o.Layers {
			l := &o.Layers[i]
			named := strings.HasPrefix(l.Digest.String(), c.Layer) || strings.HasPrefix(l.Digest.Encoded(), c.Layer)
			if l.Ztoc == nil || !named {
				continue
			}
			found = true
			if err := a.list(l); err != nil {
				return err
			}
		}
		if !found {
			return &control.Error{
				Message: fmt.Sprintf("list %s: no layer %s has a zTOC", img.Ref, c.Layer),
				Hint:    "`lacuna index info` shows which layers have one", Exit: control.ExitError,
			}
		}
		return nil
	})
}

// list prints the files of a layer.
func (a *app) list(l *publish.OpenedLayer) error {
	if err := a.print("layer %.19s\n", l.Digest); err != nil {
		return err
	}
	for i := range l.Ztoc.Files {
		if err := a.print("%s\n", fileText(&l.Ztoc.Files[i])); err != nil {
			return err
		}
	}
	return nil
}

// fileText is a line of ls -l.
func fileText(f *soci.File) string {
	mode := fs.FileMode(f.Mode & 0o777)
	name := pathText(f.Name)
	kind := "-"
	switch f.Type {
	case "dir":
		kind, name = "d", strings.TrimSuffix(name, "/")+"/"
	case "symlink":
		kind, name = "l", name+" -> "+pathText(f.Link)
	case "hardlink":
		kind, name = "h", name+" link to "+pathText(f.Link)
	case "char", "block":
		kind, name = f.Type[:1], fmt.Sprintf("%s (%d:%d)", name, f.Major, f.Minor)
	case "fifo":
		kind = "p"
	}
	bits := []byte(mode.String()[1:])
	for _, special := range []struct {
		bit        int64
		at         int
		with, lone byte
	}{{0o4000, 2, 's', 'S'}, {0o2000, 5, 's', 'S'}, {0o1000, 8, 't', 'T'}} {
		if f.Mode&special.bit == 0 {
			continue
		}
		if bits[special.at] == 'x' {
			bits[special.at] = special.with
		} else {
			bits[special.at] = special.lone
		}
	}
	when := f.ModTime
	if t, err := time.Parse(time.RFC3339Nano, f.ModTime); err == nil {
		when = t.UTC().Format(time.DateTime)
	}
	return fmt.Sprintf("%s%s %5d/%-5d %9d %-19.40s %s", kind, bits, f.UID, f.GID, f.Size, when, name)
}

// indexCatCmd writes a file of an image.
type indexCatCmd struct {
	Image string `arg:"" name:"IMAGE" help:"Reference of an image with an index."`
	File  string `arg:"" name:"FILE" help:"Path of a file in it."`
	imageFlags
}

// Help is the long help.
func (indexCatCmd) Help() string {
	return `Writes the bytes of FILE to standard output, as the mounted image has it. Of the
layer, only the pieces that hold them are fetched, and verified by the digests
of the zTOC; layers of up to 10 MiB without a zTOC that lie above are read
whole, since they may replace the file or delete it. Symlinks are not followed.
Of a multi-platform image it is this machine's, or that of --platform.

  # lacuna index cat registry.example/app:1-soci usr/lib/os-release
  PRETTY_NAME="Debian GNU/Linux 13 (trixie)"

EXIT STATUS
  0  ok
  1  the image has no index or no such file, or another error
  2  wrong usage
  4  a zTOC or a piece of the layer is not what its digest says
  5  the registry cannot be reached, or does not give the image`
}

// Run is the verb.
func (c *indexCatCmd) Run(a *app) error {
	if path.Clean("/"+c.File) == "/" {
		return &control.Error{Message: "index cat: " + c.File + ": no name of a file", Hint: "see `lacuna index cat --help`", Exit: control.ExitUsage}
	}
	return a.look("index cat", &c.imageFlags, c.Image, func(ctx context.Context, _ *oci.Image, o *publish.Opened) error {
		err := o.Cat(ctx, a.stdout, c.File)
		switch {
		case errors.Is(err, publish.ErrNoFile):
			return &control.Error{Message: err.Error(), Hint: "`lacuna index ls` lists what the layers have", Exit: control.ExitError}
		case errors.Is(err, publish.ErrNoZtoc):
			return &control.Error{Message: err.Error(), Hint: "`lacuna mount` reads all layers", Exit: control.ExitError}
		}
		return daemon.OfImage(err)
	})
}

// look opens the index of an image.
func (a *app) look(verb string, f *imageFlags, image string, show func(context.Context, *oci.Image, *publish.Opened) error) (err error) {
	if err := f.check(verb, image); err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	told := a.tellLater("asking for " + image)
	defer told()
	img, err := oci.Open(ctx, image, f.options())
	if err != nil {
		return daemon.OfImage(err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	o, err := publish.OpenIndex(ctx, img)
	told()
	if errors.Is(err, publish.ErrNoIndex) {
		return &control.Error{Message: err.Error(), Hint: "`lacuna index` makes one", Exit: control.ExitError}
	}
	if err != nil {
		return daemon.OfImage(err)
	}
	return show(ctx, img, o)
}
