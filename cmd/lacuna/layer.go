package main

import (
	"fmt"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
)

// soci2 is the format of layers whose index the image names: nothing is read by it before
// all of it is here and has its digest.
const soci2 = "soci v2"

// layerText is what status says of a layer of a mounted image, in one to three lines.
func layerText(l control.MountedLayer) string {
	head := fmt.Sprintf("  layer     %.19s  %s: ", l.Digest, l.Format)
	if l.Size == 0 {
		return head + "no data\n"
	}
	head += fmt.Sprintf("%s of %s", sizeText(l.Present), sizeText(l.Size))
	if l.Files > 0 {
		head += fmt.Sprintf(", %d of %s", l.FilesPresent, count(l.Files, "file"))
	}
	switch {
	case l.Verified || l.Error != "":
	case l.Format == soci2:
		head += ", its index is not here yet"
	default:
		head += ", no digests"
	}
	if l.Error != "" {
		head += "\n              error: " + strings.ReplaceAll(l.Error, "\n", "; ")
	}
	if l.Why != "" {
		head += "\n              read whole: " + l.Why
	}
	var told []string
	if l.Hits+l.Misses > 0 {
		told = append(told, fmt.Sprintf("%d reads present, %d missed", l.Hits, l.Misses))
	}
	if l.Requests > 0 {
		told = append(told, fmt.Sprintf("fetched %s in %s", sizeText(l.Fetched), count(l.Requests, "request")))
	}
	if len(told) == 0 {
		return head + "\n"
	}
	return head + "\n              " + strings.Join(told, ", ") + "\n"
}
