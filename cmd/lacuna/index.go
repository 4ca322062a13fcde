package main

import (
	"errors"
	"fmt"
	"math"

	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/publish"
)

// indexCmd makes indices, and looks into them.
type indexCmd struct {
	Make indexMakeCmd `cmd:"" default:"withargs" hidden:"" help:"Make a SOCI index of an image, so that it is mounted without a download."`
	Info indexInfoCmd `cmd:"" help:"Show the index of an image."`
	Ls   indexLsCmd   `cmd:"" help:"List the files of an image's layers, as its index has them."`
	Cat  indexCatCmd  `cmd:"" help:"Write a file of an image, fetching only what holds it."`
}

// indexMakeCmd makes an index.
type indexMakeCmd struct {
	Image        string `arg:"" name:"IMAGE" help:"Reference of an image, or oci-layout:DIR or docker-archive:FILE."`
	SpanSize     string `placeholder:"SIZE" default:"4MiB" help:"How far apart reading can begin: 4MiB, and at most 12MiB. Smaller ones fetch less for a small read, and make a larger index."`
	MinLayerSize string `placeholder:"SIZE" default:"10MiB" help:"Layers below that get no zTOC: 10MiB."`
	V1           bool   `name:"v1" xor:"version" help:"Make an index that refers to the image, which stays what it is."`
	V2           bool   `name:"v2" xor:"version" help:"Make an image that names its index. The default."`
	targetFlags
	imageFlags
}

// Usage are the forms of the command.
func (indexMakeCmd) Usage() []string {
	return []string{
		"[--span-size SIZE] [--min-layer-size SIZE] [--v1] [--v2] [--platform OS/ARCH] [--authfile FILE] [--hosts-dir DIR] [--plain-http] [--push] [--tag TAG] IMAGE",
		"... --output oci-layout:DIR[:TAG] IMAGE",
		"info|ls|cat IMAGE ...",
	}
}

// Help is the long help.
func (indexMakeCmd) Help() string {
	return `IMAGE is as for mount. Its gzip layers are read once, verified by their digests,
and a zTOC is made of each: where its files lie, and how to begin decoding every
4 MiB. The layers stay what they are; one that cannot be indexed is left out,
with a note. An index lists the zTOCs, in the format of SOCI (version 2 by
default), which other snapshotters read too.

With --v2 the image itself names its index, so that whoever trusts the image's
digest can trust the index, and no registry has to list what refers to what.
That makes it another image, which is pushed as IMAGE's tag with -soci, or as
--tag. With --v1 the image stays what it is and the index refers to it; whoever
may push to the repository can add one. All images of a multi-platform one are
indexed, or that of --platform.

The same image and flags give the same index, byte for byte. No daemon is
needed, and no privilege.

  # lacuna index --push registry.example/app:1
  linux/amd64: 2 of 3 layers indexed, zTOCs of 1.1 MiB, sha256:5f1e2d3c4b5a
  pushed registry.example/app:1-soci (sha256:0a9d1a2b77c3)
  # lacuna mount registry.example/app:1-soci /mnt/app

EXIT STATUS
  0  it is there
  1  error, such as a full disk, or no layer is large enough
  2  wrong usage
  4  a layer or the manifest is not what its digest says
  5  the registry cannot be reached, or does not give or take the image`
}

// Run is the verb.
func (c *indexMakeCmd) Run(a *app) error {
	o := publish.IndexOptions{Version: 2}
	suffix := "-soci"
	if c.V1 {
		o.Version, suffix = 1, ""
	}
	for _, p := range []struct {
		to          *int64
		flag, from  string
		least, most int64
	}{
		{&o.SpanSize, "--span-size", c.SpanSize, 1 << 10, publish.MaxSpanSize},
		{&o.MinLayerSize, "--min-layer-size", c.MinLayerSize, 0, math.MaxInt64},
	} {
		n, err := config.ParseSize(p.from)
		wrong, hint := "", "write a whole number and a unit, such as 4MiB"
		switch {
		case err != nil || int64(n) < p.least:
			wrong = "no such size"
		case int64(n) > p.most:
			wrong, hint = "what is read at once must fit into memory", fmt.Sprintf("write %s %dMiB or less", p.flag, p.most>>20)
		}
		if wrong != "" {
			return &control.Error{Message: "index: " + p.flag + " " + p.from + ": " + wrong, Hint: hint, Exit: control.ExitUsage}
		}
		*p.to = int64(n)
	}
	if err := c.check("index", c.Image); err != nil {
		return err
	}
	to, err := c.resolve("index", c.Image, suffix)
	if err != nil {
		return err
	}
	o.Tag = to.tag
	var made *publish.Indexed
	err = a.make(&c.imageFlags, c.Image, to, func(m making) (err error) {
		o.Report = m.report
		made, err = publish.Index(m.ctx, m.from, m.to, o)
		return err
	})
	if errors.Is(err, publish.ErrNothing) {
		return &control.Error{Message: "index " + c.Image + ": no layer of at least " + c.MinLayerSize + " can have a zTOC", Hint: "--min-layer-size 0B indexes small layers too", Exit: control.ExitError}
	}
	if err != nil {
		return daemon.OfImage(err)
	}
	for _, i := range made.Images {
		if err := a.print("%s: %d of %s indexed, zTOCs of %s, %.19s\n", platformText(i.Platform), i.Ztocs, count(i.Layers, "layer"), sizeText(i.Size), i.Index); err != nil {
			return err
		}
	}
	return a.put(to, made.Digest.String())
}

// put tells where an image is now.
func (a *app) put(to target, digest string) error {
	verb := "pushed"
	if to.layout != "" {
		verb = "wrote"
	}
	if to.tag == "" {
		verb = "indexed"
	}
	return a.print("%s %s (%.19s)\n", verb, pathText(to.String()), digest)
}
