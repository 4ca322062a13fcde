package prepare

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/estargz"
	"github.com/lacunafs/lacuna/internal/toc/zstdchunked"
)

// reader reads the tables of contents of a format.
type reader struct {
	format Format
	read   toc.Read
	// trust is what the manifest has the table of contents verified by.
	trust func(annotations map[string]string) string
}

// readers are in the order in which they are tried.
func readers() []reader {
	return []reader{{ZstdChunked, zstdchunked.Read, zstdchunked.Trust}, {EStargz, estargz.Read, estargz.Trust}}
}

// deviceID names the object of a layer's device. The layer's own digest is never
// checked where ranges of it are read, so the name has what is: trust.
func deviceID(l oci.Layer, f Format, trust ...string) ondemand.ObjectID {
	sum := sha256.Sum256(fmt.Appendf(nil, "lacuna device %d\n%s\n%q %d\n%q\n", device.Version, f, l.Digest, l.Size, trust))
	return ondemand.ObjectID(hex.EncodeToString(sum[:]))
}

// verifiedLayer is a layer whose table of contents has what the manifest names.
func verifiedLayer(l oci.Layer, f Format, trust string) Layer {
	return Layer{Device: deviceID(l, f, "verified", trust), Format: f, Verified: true}
}

// unverifiedLayer is one whose table of contents has this digest and nothing that
// vouches for it but who was asked: nobody else's bytes may be taken for it.
func unverifiedLayer(img *oci.Image, l oci.Layer, f Format, digest string) Layer {
	return Layer{Device: deviceID(l, f, "unverified", img.Ref, img.Digest.String(), digest), Format: f}
}

// scannedLayer is a layer that was read whole, and had its digest. The annotation
// is one of the things that hideMarks goes by.
func scannedLayer(l oci.Layer) Layer {
	return Layer{Device: deviceID(l, Scanned, "whole", fmt.Sprint(l.Annotations[estargz.TOCDigest] != "")), Format: Scanned, Verified: true}
}

// known are the forms of an image's layer that a kept table of contents may have:
// those that this manifest vouches for, and the one of the plan that the job begins with.
func (j *Job) known(n int) (list []Layer) {
	from := j.Image.Layers[n]
	for _, r := range readers() {
		if trust := r.trust(from.Annotations); trust != "" {
			list = append(list, verifiedLayer(from, r.format, trust))
		}
	}
	list = append(list, scannedLayer(from))
	if j.before != nil && !j.before.Layers[n].Verified {
		list = append(list, j.before.Layers[n])
	}
	return slices.DeleteFunc(list, func(l Layer) bool { return !j.allows(n, l.Format) })
}

// cached finds a layer of which all is there that preparing it would make.
func (l *Library) cached(j *Job, n int) (p prepared, found bool) {
	for _, layer := range j.known(n) {
		t, head, err := l.loadTOC(layer.Device)
		if err != nil || head.Verified != layer.Verified {
			continue // none, or one that is read anew
		}
		if layer.Ztoc != nil {
			if _, suspect := l.suspects.Load(layer.Device); suspect {
				continue
			}
			if _, err := l.loadSpans(layer); err != nil {
				continue
			}
		}
		layer.Size, layer.Why = t.DeviceSize(), head.Why
		if layer.Format == Scanned && layer.Size > 0 && !exists(j.Root, layer) {
			continue
		}
		return prepared{Layer: layer, toc: t}, true
	}
	return p, false
}

// lossyName finds a name with U+FFFD in a table of contents that is JSON. Its writers
// put that in place of bytes that are no UTF-8 (encoding/json), so that the name may be
// another's, or several others'. What lower layers have by that name would not be
// hidden, and nobody would find the file by its own.
func lossyName(t *toc.TOC) (name string, found bool) {
	lossy := func(s string) bool { return strings.ContainsRune(s, utf8.RuneError) }
	for i := range t.Entries {
		e := &t.Entries[i]
		for _, s := range []string{e.Name, e.Link} {
			if lossy(s) {
				return s, true
			}
		}
		for _, x := range e.Xattrs {
			if lossy(x.Name) {
				return x.Name, true
			}
		}
	}
	return "", false
}

func exists(root *cache.Root, layer Layer) bool {
	_, err := os.Stat(filepath.Join(root.Dir(), "objects", string(layer.Device[:2]), string(layer.Device), "data"))
	return err == nil
}
