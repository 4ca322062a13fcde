package prepare

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Orphans finds below the cache root dir what nothing needs that exists: images that
// have devices, and none of whose devices' objects exist, or that have no plan that
// is of use; what names meant that means none of the images that stay;
// tables of contents of no such object and no image that stays; and what a crash
// left half written. exists tells of objects, mounted of the keys of images that are
// needed. Where a plan cannot be read it is not known what that needs.
func Orphans(dir string, exists func(ondemand.ObjectID) bool, mounted func(key string) bool) (paths []string, err error) {
	l := &Library{dir: dir}
	images, err := names(filepath.Join(dir, "images"))
	if err != nil {
		return nil, err
	}
	needed := make(map[string]bool) // names of tables of contents
	stays := make(map[string]bool)  // keys
	for _, key := range images {
		plan, err := l.Load(key)
		// What nobody has mounted is made anew where it is one of these.
		gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) || errors.Is(err, errOld)
		if err != nil && (mounted(key) || !gone) {
			return nil, err
		}
		if !mounted(key) && (gone || plan.isOrphan(exists)) {
			paths = append(paths, filepath.Join(dir, "images", key))
			continue
		}
		stays[key] = true
		for _, layer := range plan.Layers {
			for _, suffix := range keptSuffixes() {
				needed[string(layer.Device)+suffix] = true
			}
		}
		left, err := names(filepath.Join(dir, "images", key))
		if err != nil {
			return nil, err
		}
		for _, name := range left {
			if strings.HasPrefix(name, durable.Prefix) {
				paths = append(paths, filepath.Join(dir, "images", key, name))
			}
		}
	}
	asked, err := names(filepath.Join(dir, askedDir))
	if err != nil {
		return nil, err
	}
	for _, name := range asked {
		var m meaning
		path := filepath.Join(dir, askedDir, name)
		if strings.HasPrefix(name, durable.Prefix) || unseal(path, &m) != nil || !stays[m.Key] {
			paths = append(paths, path)
		}
	}
	tocs, err := names(filepath.Join(dir, "layers"))
	if err != nil {
		return nil, err
	}
	for _, name := range tocs {
		id, suffix, _ := strings.Cut(name, ".")
		ok := slices.Contains(keptSuffixes(), "."+suffix)
		if strings.HasPrefix(name, durable.Prefix) || ok && !needed[name] && !exists(ondemand.ObjectID(id)) {
			paths = append(paths, filepath.Join(dir, "layers", name))
		}
	}
	return paths, nil
}

// isOrphan tells whether the image has devices, and no object of any.
func (p *Plan) isOrphan(exists func(ondemand.ObjectID) bool) bool {
	return len(p.Devices) > 0 && !slices.ContainsFunc(p.Devices, func(n int) bool { return exists(p.Layers[n].Device) })
}

// names is what a directory has, nothing where there is none.
func names(dir string) (list []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list, err
}
