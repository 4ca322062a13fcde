package fileset

import (
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Parts is what is known of the bytes of a device's object without its sources: an
// error that wraps fs.ErrNotExist where no manifest of the cache root has it.
func Parts(root string, id ondemand.ObjectID) ([]cache.Part, error) {
	l := &Library{dir: filepath.Join(root, Dir)}
	names, err := filepath.Glob(filepath.Join(l.dir, "*", planName))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		plan, err := l.Load(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue // another may have it
		}
		for n := range plan.Devices {
			if plan.Devices[n].Object == id {
				return plan.Devices[n].digests()
			}
		}
	}
	return nil, fmt.Errorf("no manifest has it: %w", fs.ErrNotExist)
}

func (d *Device) digests() (parts []cache.Part, err error) {
	for n := range d.Parts {
		at, err := d.Parts[n].place()
		if err != nil {
			return nil, err
		}
		p := cache.Part{Off: at.Off, Len: at.Size}
		if at.HasDigest {
			p.Digest = &at.Digest
		}
		parts = append(parts, p)
	}
	return parts, nil
}
