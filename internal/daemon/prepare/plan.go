// Package prepare makes what a mount of an image needs and keeps it in the cache
// root: the layers' tables of contents, the objects of their devices, and the
// filesystem image. What is there already is used again, without a network.
//
//	images/<key>/plan.json       what the image is made of
//	images/<key>/metadata.erofs  its filesystem image
//	layers/<device id>.toc       a layer's table of contents
//	asked/<digest>.json          the key of what an image's name meant last
//
// The id of a device contains what its bytes are trusted by (device.go), and the key of
// an image the ids of its devices, so that what has a name stays what it is. Files are
// written whole under another name and then given theirs. Those of JSON say their
// own SHA-256 and the plan says that of the filesystem image: where one is wrong
// it is made anew.
package prepare

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/spans"
)

// planVersion is the version of plans that this program reads and writes. It goes
// up when the same image would get another filesystem image, or what was made before is
// not to be believed: up to version 3 a plan went with whatever was read of a zTOC.
const planVersion = 4

// Plan is what an image is made of.
type Plan struct {
	// Image as it was found; Image.Ref is what was asked for, in full.
	Image oci.Image `json:"image"`
	// Layers are the image's, the lowest first.
	Layers []Layer `json:"layers"`
	// Devices are the indices of the layers that have one, in the order of
	// the filesystem image's device table.
	Devices []int `json:"devices"`
	// Sequential: the registry had no range requests.
	Sequential bool `json:"sequential,omitempty"`
	// Files counts the names that are not a directory's.
	Files int `json:"files"`
	// Sum is the SHA-256 of the filesystem image, in hexadecimal digits, Bytes its size.
	Sum   string `json:"sum"`
	Bytes int64  `json:"bytes"`

	// Key names the plan in the cache root.
	Key string `json:"-"`
	// Metadata is the path of the filesystem image.
	Metadata string `json:"-"`
}

// Asked is how an image was asked for.
type Asked struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"`
	// Hosts is the directory of mirrors that were asked; empty: the usual one.
	Hosts string `json:"hosts,omitempty"`
	// Format is how its layers are to be read; empty: each in the best way it has.
	Format Wish `json:"format,omitempty"`
}

// Layer is one layer of a plan.
type Layer struct {
	// Device is the id of its device's object, Size that one's size.
	Device ondemand.ObjectID `json:"device"`
	Size   int64             `json:"size"`
	// Format that its table of contents was read from.
	Format Format `json:"format"`
	// Verified: every byte of the device has a digest that follows from the
	// manifest's.
	Verified bool `json:"verified"`
	// Ztoc is the index that the layer is read by, where it is.
	Ztoc *Ztoc `json:"ztoc,omitempty"`
	// Why a layer was scanned that has a table of contents of its own; empty where
	// it has none.
	Why string `json:"why,omitempty"`
}

// Follows tells whether a digest of all that readers are given follows from the
// manifest's: layers with an index that the image names are Verified only once all of
// that is there, and not read before.
func (l *Layer) Follows() bool { return l.Verified || l.Ztoc != nil && l.Ztoc.Version == 2 }

// Format is how a layer's table of contents is had.
type Format string

// The formats.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstd:chunked"
	SOCI2       Format = "soci v2"
	SOCI1       Format = "soci v1"
	// Scanned layers have none: they are downloaded whole when they are first
	// mounted. Holes of their sparse files are missing until they are read.
	Scanned Format = "scanned"
)

// keyOf names the plan of an image with these layers.
func keyOf(img *oci.Image, layers []prepared) string {
	b := fmt.Appendf(nil, "lacuna image %d %d\n%s\n%s\n", planVersion, device.Version, img.Ref, img.Digest)
	for _, l := range layers {
		b = fmt.Appendf(b, "%s\n", l.Device)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// Library is the prepared images of a cache root.
type Library struct {
	dir   string
	locks locks
	gate  *device.Gate
	spans *spans.Gate
	// suspects are layers whose zTOC was sent wrongly, so that what was read of it
	// before may be wrong, too. It is read anew for the next mount.
	suspects sync.Map // of ondemand.ObjectID
}

// Open returns the library below the cache root dir.
func Open(dir string) (*Library, error) {
	for _, name := range []string{"images", "layers", askedDir} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("open the library of images: %w", err)
		}
	}
	return &Library{dir: dir, gate: device.NewGate(), spans: spans.NewGate()}, nil
}

// Load reads a plan by its key; an error that wraps fs.ErrNotExist where there is
// none, ErrDamaged where it is not what was written. The filesystem image is not
// looked at: it may be mounted.
func (l *Library) Load(key string) (*Plan, error) {
	dir := filepath.Join(l.dir, "images", key)
	p := &Plan{Key: key, Metadata: filepath.Join(dir, "metadata.erofs")}
	if err := unseal(filepath.Join(dir, "plan.json"), p); err != nil {
		return nil, fmt.Errorf("load image %s: %w", key, err)
	}
	if len(p.Layers) != len(p.Image.Layers) {
		return nil, fmt.Errorf("load image %s: %d layers of %d", key, len(p.Layers), len(p.Image.Layers))
	}
	for _, d := range p.Devices {
		if d < 0 || d >= len(p.Layers) {
			return nil, fmt.Errorf("load image %s: no layer %d", key, d)
		}
	}
	return p, nil
}

// checkMetadata reads the filesystem image; ErrDamaged where it is not what was
// written.
func (p *Plan) checkMetadata() (err error) {
	f, err := openFile(p.Metadata)
	if err != nil {
		return fmt.Errorf("check image %s: %w", p.Key, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return fmt.Errorf("check image %s: %w", p.Key, err)
	}
	if n != p.Bytes || hex.EncodeToString(sum.Sum(nil)) != p.Sum {
		return fmt.Errorf("check image %s: filesystem image: %w", p.Key, ErrDamaged)
	}
	return nil
}

// Find returns what is asked for as it was found last, and nil where it never was:
// what is mounted while the registry cannot be reached. An error: it was, and cannot be
// mounted.
func (l *Library) Find(asked Asked) (*Plan, error) {
	if _, err := os.Lstat(askedPath(l.dir, asked)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	p, err := l.last(asked)
	if err == nil {
		err = l.check(p)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// check reads what was kept of a plan: ErrDamaged where it is not what was written.
func (l *Library) check(p *Plan) error {
	for _, layer := range p.Layers {
		err := l.checkTOC(layer)
		if err == nil && layer.Ztoc != nil {
			_, err = l.loadSpans(layer)
		}
		if err != nil {
			return fmt.Errorf("check image %s: %w", p.Key, err)
		}
	}
	return p.checkMetadata()
}
