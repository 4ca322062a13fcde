package main

import (
	"fmt"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
)

// mountedText is what status says of a mounted image or manifest.
func mountedText(b *strings.Builder, m control.Mounted) {
	fmt.Fprintf(b, "\n%s\n", pathText(m.Dir))
	if m.Manifest != "" {
		fmt.Fprintf(b, "  manifest  %s\n", pathText(m.Manifest))
	} else {
		fmt.Fprintf(b, "  image     %s (%.19s)\n", m.Image, m.Digest)
	}
	var all control.MountedLayer
	for _, l := range m.Layers {
		all.Size += l.Size
		all.Present += l.Present
		all.Hits += l.Hits
		all.Misses += l.Misses
		all.Requests += l.Requests
		all.Fetched += l.Fetched
	}
	fmt.Fprintf(b, "  present   %s of %s (%s), in %s\n", sizeText(all.Present), sizeText(all.Size), percentText(all.Present, all.Size), count(m.Files, "file"))
	fmt.Fprintf(b, "  verified  %s\n", mountedVerified(m))
	fmt.Fprintf(b, "  reads     %d present, %d missed\n", all.Hits, all.Misses)
	if all.Requests > 0 {
		fmt.Fprintf(b, "  fetched   %s in %s\n", sizeText(all.Fetched), count(all.Requests, "request"))
	}
	if m.Leaving {
		fmt.Fprintf(b, "  note      it is unmounted, and still in use by %s\n", m.Users)
	}
	if m.Manifest == "" {
		for _, l := range m.Layers {
			b.WriteString(layerText(l))
		}
	}
	for _, f := range m.Failed {
		fmt.Fprintf(b, "  error     %s: %s\n", pathText(f.Path), strings.ReplaceAll(f.Error, "\n", "; "))
	}
	if more := m.FailedFiles - len(m.Failed); more > 0 {
		fmt.Fprintf(b, "  error     %d more files\n", more)
	}
}

func mountedVerified(m control.Mounted) string {
	if m.Manifest == "" {
		return layersVerified(m.Layers)
	}
	var what []string
	if m.Unverifiable > 0 {
		what = append(what, fmt.Sprintf("no digest is known of %s", count(m.Unverifiable, "file")))
	}
	if m.Unverified > 0 {
		what = append(what, fmt.Sprintf("%s not yet: the digest is checked once all of one is here", count(m.Unverified, "file")))
	}
	if len(what) == 0 {
		return "yes, by their digests"
	}
	return strings.Join(what, "; ")
}

func layersVerified(layers []control.MountedLayer) string {
	text := "yes, before it is read"
	for _, l := range layers {
		switch {
		case l.Error != "":
			return "no: a layer's index is wrong, and nothing is read of it"
		case !l.Verified && l.Format != soci2:
			text = "not all: a layer has no digests"
		}
	}
	return text
}
