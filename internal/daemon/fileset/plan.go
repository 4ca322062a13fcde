// Package fileset serves the files of a manifest: it lays their bytes out in
// devices, makes the filesystem image that shows them as a tree, and binds each of
// them to the version that its source had when it was first asked.
//
//	manifests/<key>/plan.json        what the tree is made of
//	manifests/<key>/metadata.erofs   its filesystem image
//	manifests/<object>.parts         what is known of the sources of a device
//
// A device is one object of the cache, and a part of it the bytes of one file, at a
// place of its own: small files share a device, because a mount opens each of its
// devices, and a large one has its own, whose reads are let through at full speed
// once it is all there. The sizes of all files are known before anything is mounted,
// so no source is asked for them then.
//
// A part with a digest that is small is verified before any of it is present. Of
// others only the whole can be verified, once it is present; readers may have seen
// what turns out to be wrong. From then on such a part is denied, as is one whose
// source has changed meanwhile, until the manifest is mounted anew.
//
// Locks: Set.mu and ledger.mu are held over no question to a source; Set.mu goes
// first.
package fileset

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/manifest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/concat"
)

// planVersion is the version of plans that this program reads and writes. It goes
// up when the same manifest would get other devices.
const planVersion = 1

// Plan is what a tree is made of.
type Plan struct {
	Version int `json:"version"`
	// Asked is the digest of the manifest as it was written.
	Asked string `json:"asked"`
	// Devices in the order of the filesystem image's device table.
	Devices []Device `json:"devices"`
	// Files counts the files, Size is the sum of their sizes.
	Files int   `json:"files"`
	Size  int64 `json:"size"`

	// Key names the plan in the cache root.
	Key string `json:"-"`
	// Metadata is the path of the filesystem image.
	Metadata string `json:"-"`
}

// Objects are those of the devices.
func (p *Plan) Objects() (ids []ondemand.ObjectID) {
	for _, d := range p.Devices {
		ids = append(ids, d.Object)
	}
	return ids
}

// Device is an object that the bytes of files lie in.
type Device struct {
	Object ondemand.ObjectID `json:"object"`
	Size   int64             `json:"size"`
	Parts  []Part            `json:"parts"` // by Off
}

// Part is the bytes of a file.
type Part struct {
	// Path of the file, or of the first of several with the same bytes.
	Path string `json:"path"`
	// URL that they come from, or a path.
	URL string `json:"url"`
	// Off is where in the device they begin, a multiple of the block size.
	Off  int64 `json:"off"`
	Size int64 `json:"size"`
	// SHA256 in hexadecimal digits, or empty.
	SHA256 string `json:"sha256,omitempty"`
}

// Range of the part in its device, in whole blocks.
func (p *Part) Range() ondemand.Range { return ondemand.Range{Off: p.Off, Len: roundUp(p.Size)} }

// place is the part as package concat takes it.
func (p *Part) place() (concat.Part, error) {
	c := concat.Part{Off: p.Off, Size: p.Size, HasDigest: p.SHA256 != ""}
	if n, err := hex.Decode(c.Digest[:], []byte(p.SHA256)); err != nil || c.HasDigest && n != len(c.Digest) {
		return c, fmt.Errorf("digest %q of %q", p.SHA256, p.Path)
	}
	return c, nil
}

func roundUp(n int64) int64 { return (n + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1) }

const (
	// ownSize is the size from which on a file has a device of its own, and
	// maxOwn how many do: the largest ones in the order of the manifest.
	ownSize = 64 << 20
	maxOwn  = 16
	// maxTotal is how many bytes a filesystem image can address: 32 bits of blocks
	// (erofs_fs.h), less a part for the image itself.
	maxTotal = int64(1)<<44 - 1<<36
)

// ErrTooLarge: the files have more bytes than one filesystem image can address.
var ErrTooLarge = errors.New("more than one filesystem can hold")

// layout gives each file its place. Files with the same bytes share one.
func layout(list []manifest.Entry) (devices []Device, places []place, err error) {
	type content struct {
		url, sha string
		size     int64
	}
	known := make(map[content]place)
	shared := Device{}
	total := int64(0)
	for _, e := range list {
		if e.Size == 0 {
			places = append(places, place{})
			continue
		}
		c := content{e.URL, e.SHA256, e.Size}
		if e.SHA256 != "" {
			c.url = ""
		}
		at, found := known[c]
		if !found {
			if total += roundUp(e.Size); total > maxTotal {
				return nil, nil, fmt.Errorf("%w: %d TiB", ErrTooLarge, maxTotal>>40)
			}
			part := Part{Path: e.Path, URL: e.URL, Size: e.Size, SHA256: e.SHA256}
			if e.Size >= ownSize && len(devices) < maxOwn {
				at = place{device: len(devices)}
				devices = append(devices, Device{Size: roundUp(e.Size), Parts: []Part{part}})
			} else {
				part.Off = shared.Size
				at = place{device: -1, off: part.Off}
				shared.Parts = append(shared.Parts, part)
				shared.Size += roundUp(e.Size)
			}
			known[c] = at
		}
		places = append(places, at)
	}
	for n := range places {
		if places[n].device < 0 {
			places[n].device = len(devices)
		}
	}
	if len(shared.Parts) > 0 {
		devices = append(devices, shared)
	}
	for n := range devices {
		devices[n].Object = objectID(&devices[n])
	}
	return devices, places, nil
}

// place is where the bytes of a file lie.
type place struct {
	device int
	off    int64
}

// objectID names the object of a device. Where a file has a digest it does not
// matter which source has its bytes.
func objectID(d *Device) ondemand.ObjectID {
	sum := sha256.New()
	write := func(format string, args ...any) {
		if _, err := fmt.Fprintf(sum, format, args...); err != nil {
			panic("fileset: internal error: " + err.Error()) // a hash takes everything
		}
	}
	write("lacuna files %d\n", planVersion)
	for _, p := range d.Parts {
		if p.SHA256 != "" {
			write("%d %d sha256:%s\n", p.Off, p.Size, p.SHA256)
		} else {
			write("%d %d %s\n", p.Off, p.Size, p.URL)
		}
	}
	return ondemand.ObjectID(hex.EncodeToString(sum.Sum(nil)))
}

// keyOf names the plan of a list of files whose sizes are known.
func keyOf(list []manifest.Entry) (string, error) {
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(struct {
		Version int
		Files   []manifest.Entry
	}{planVersion, list}); err != nil {
		return "", fmt.Errorf("name the manifest: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// Library is the plans of a cache root.
type Library struct{ dir string }

// planName is the name of a plan's file in its folder.
const planName = "plan.json"

// Dir is the folder below a cache root that a Library has.
const Dir = "manifests"

// Open returns the library below the cache root.
func Open(root string) (*Library, error) {
	dir := filepath.Join(root, Dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the library of manifests: %w", err)
	}
	return &Library{dir: dir}, nil
}

// Load reads a plan by its key; an error that wraps fs.ErrNotExist where there is none.
func (l *Library) Load(key string) (*Plan, error) {
	dir := filepath.Join(l.dir, key)
	b, err := os.ReadFile(filepath.Join(dir, planName))
	if err != nil {
		return nil, fmt.Errorf("load manifest: %w", err)
	}
	p := &Plan{Key: key, Metadata: filepath.Join(dir, "metadata.erofs")}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("load manifest %s: %w", key, err)
	}
	if p.Version != planVersion {
		return nil, fmt.Errorf("load manifest %s: version %d, this program knows %d", key, p.Version, planVersion)
	}
	if _, err := os.Stat(p.Metadata); err != nil {
		return nil, fmt.Errorf("load manifest %s: %w", key, err)
	}
	return p, nil
}

// Find returns the plan that was made last of the manifest with that digest, and
// nil where there is none.
func (l *Library) Find(asked string) (*Plan, error) {
	names, err := filepath.Glob(filepath.Join(l.dir, "*", planName))
	if err != nil {
		return nil, err
	}
	var found *Plan
	var newest time.Time
	for _, name := range names {
		st, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found != nil && !st.ModTime().After(newest) {
			continue
		}
		p, err := l.Load(filepath.Base(filepath.Dir(name)))
		if err != nil || p.Asked != asked {
			continue // one that cannot be read is made anew when it can be
		}
		found, newest = p, st.ModTime()
	}
	return found, nil
}

// Prepare returns the plan of files whose sizes are all known, and makes it where
// there is none. asked is the digest of the manifest; now is the time of files of
// which it does not tell one.
func (l *Library) Prepare(list []manifest.Entry, asked string, now time.Time) (*Plan, error) {
	key, err := keyOf(list)
	if err != nil {
		return nil, err
	}
	if p, err := l.Load(key); err == nil && p.Asked == asked {
		return p, nil
	}
	devices, places, err := layout(list)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.dir, key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep the manifest: %w", err)
	}
	p := &Plan{
		Version: planVersion, Asked: asked, Devices: devices, Files: len(list),
		Key: key, Metadata: filepath.Join(dir, "metadata.erofs"),
	}
	for _, e := range list {
		p.Size += e.Size
	}
	img := imageOf(list, devices, places, now)
	if err := durable.Replace(p.Metadata, func(w io.Writer) error { return erofs.Write(w, img) }); err != nil {
		return nil, err
	}
	err = durable.Replace(filepath.Join(dir, planName), func(w io.Writer) error { return json.NewEncoder(w).Encode(p) })
	return p, err
}
