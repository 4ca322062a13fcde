package main

import (
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/publish"
)

// convertCmd makes an image in another format.
type convertCmd struct {
	Image string `arg:"" name:"IMAGE" help:"Reference of an image, or oci-layout:DIR or docker-archive:FILE."`
	To    string `required:"" enum:"estargz,zstdchunked" placeholder:"estargz|zstdchunked" help:"The format of the new layers."`
	targetFlags
	imageFlags
}

// Usage are the forms of the command.
func (convertCmd) Usage() []string {
	return []string{
		"--to estargz|zstdchunked [--platform OS/ARCH] [--authfile FILE] [--hosts-dir DIR] [--plain-http] [--push] [--tag TAG] IMAGE",
		"... --output oci-layout:DIR[:TAG] IMAGE",
	}
}

// Help is the long help.
func (convertCmd) Help() string {
	return `Makes an image with the files of IMAGE, whose layers have a table of contents of
their own: it is mounted without a download, by lacuna and by others. estargz
layers can be read by everything that reads gzip; zstdchunked ones are smaller
and need a runtime that knows zstd. Layers that have the format already stay
what they are. All images of a multi-platform one are converted, or that of
--platform; attestations and SOCI indices, which are about other bytes, are left
out.

Each layer is verified by its digests, and lies unpacked in the directory for
temporary files while it is converted. The same image gives the same layers,
byte for byte. It is pushed as IMAGE's tag with -estargz or -zstdchunked, or as
--tag. No daemon is needed, and no privilege.

  # lacuna convert --to estargz --push registry.example/app:1
  linux/amd64: 3 layers, 81.2 MiB, were 80.9 MiB
  pushed registry.example/app:1-estargz (sha256:0a9d1a2b77c3)

EXIT STATUS
  0  it is there
  1  error, such as a full disk
  2  wrong usage
  4  a layer or the manifest is not what its digest says
  5  the registry cannot be reached, or does not give or take the image`
}

// Run is the verb.
func (c *convertCmd) Run(a *app) error {
	if err := c.check("convert", c.Image); err != nil {
		return err
	}
	to, err := c.resolve("convert", c.Image, "-"+c.To)
	if err != nil {
		return err
	}
	var made *publish.Converted
	err = a.make(&c.imageFlags, c.Image, to, func(m making) (err error) {
		made, err = publish.Convert(m.ctx, m.from, m.to, publish.ConvertOptions{To: publish.Format(c.To), Tag: to.tag, Report: m.report})
		return err
	})
	if err != nil {
		return daemon.OfImage(err)
	}
	for _, i := range made.Images {
		if err := a.print("%s: %s, %s, were %s\n", platformText(i.Platform), count(i.Layers, "layer"), sizeText(i.After), sizeText(i.Before)); err != nil {
			return err
		}
	}
	return a.put(to, made.Digest.String())
}
