// Package prepare makes what a mount of an image needs and keeps it in the cache
// root: the layers' tables of contents, the objects of their devices, and the
// filesystem image. What is there already is used again, without a network.
//
//	images/<key>/plan.json       what the image is made of
//	images/<key>/metadata.erofs  its filesystem image
//	layers/<device id>.toc       a layer's table of contents
//
// Everything here follows from the image's manifest, whose digest is part of the
// key. Files are written whole under another name and then given theirs.
package prepare

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/oci"
)

// planVersion is the version of plans that this program reads and writes. It goes
// up when the same image would get another filesystem image.
const planVersion = 1

// Plan is what an image is made of.
type Plan struct {
	Version int `json:"version"`
	// Asked is what it was last asked for by.
	Asked Asked `json:"asked"`
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

	// Key names the plan in the cache root.
	Key string `json:"-"`
	// Metadata is the path of the filesystem image.
	Metadata string `json:"-"`
}

// Asked is how an image was asked for.
type Asked struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"`
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
}

// Format is how a layer's table of contents is had.
type Format string

// The formats.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstd:chunked"
	// Scanned layers have none: they are downloaded whole when they are first
	// mounted.
	Scanned Format = "scanned"
)

// deviceID names the object of a layer's device.
func deviceID(l oci.Layer, f Format) ondemand.ObjectID {
	sum := sha256.Sum256(fmt.Appendf(nil, "lacuna device %d\n%s\n%s\n", device.Version, f, l.Digest))
	return ondemand.ObjectID(hex.EncodeToString(sum[:]))
}

// keyOf names the plan of an image.
func keyOf(img *oci.Image) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "lacuna image %d %d\n%s\n%s\n", planVersion, device.Version, img.Ref, img.Digest))
	return hex.EncodeToString(sum[:16])
}

// Library is the prepared images of a cache root.
type Library struct{ dir string }

// Open returns the library below the cache root dir.
func Open(dir string) (*Library, error) {
	for _, name := range []string{"images", "layers"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("open the library of images: %w", err)
		}
	}
	return &Library{dir: dir}, nil
}

// Load reads a plan by its key; an error that wraps fs.ErrNotExist where there is none.
func (l *Library) Load(key string) (*Plan, error) {
	dir := filepath.Join(l.dir, "images", key)
	b, err := os.ReadFile(filepath.Join(dir, "plan.json"))
	if err != nil {
		return nil, fmt.Errorf("load image: %w", err)
	}
	p := &Plan{Key: key, Metadata: filepath.Join(dir, "metadata.erofs")}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("load image %s: %w", key, err)
	}
	if p.Version != planVersion {
		return nil, fmt.Errorf("load image %s: version %d, this program knows %d", key, p.Version, planVersion)
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

// Find returns the plan that was made last for what is asked, and nil where there
// is none: what is mounted while the registry cannot be reached.
func (l *Library) Find(asked Asked) (*Plan, error) {
	names, err := filepath.Glob(filepath.Join(l.dir, "images", "*", "plan.json"))
	if err != nil {
		return nil, err
	}
	var found *Plan
	var newest int64
	for _, name := range names {
		st, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := l.Load(filepath.Base(filepath.Dir(name)))
		if err != nil || p.Asked != asked {
			continue // one that cannot be read is made anew when it can be
		}
		if at := st.ModTime().UnixNano(); found == nil || at > newest {
			found, newest = p, at
		}
	}
	return found, nil
}
