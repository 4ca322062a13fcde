package fileset

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Orphans finds below the cache root what nothing needs that exists: plans that are
// not mounted and none of whose objects exist, or that were not written to their
// end; what is known of the sources of objects that are gone; and what a crash left
// half written. exists tells of objects, mounted of the keys of plans.
func Orphans(root string, exists func(ondemand.ObjectID) bool, mounted func(key string) bool) (paths []string, err error) {
	l := &Library{dir: filepath.Join(root, Dir)}
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		if !e.IsDir() {
			id, ok := strings.CutSuffix(e.Name(), partsSuffix)
			if ok && !exists(ondemand.ObjectID(id)) || strings.HasPrefix(e.Name(), durable.Prefix) {
				paths = append(paths, path)
			}
			continue
		}
		if mounted(e.Name()) {
			continue
		}
		plan, err := l.Load(e.Name())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err // it is not known what it needs
		}
		if err != nil || plan.isOrphan(exists) {
			paths = append(paths, path)
			continue
		}
		left, err := filepath.Glob(filepath.Join(path, durable.Prefix+"*"))
		if err != nil {
			return nil, err
		}
		paths = append(paths, left...)
	}
	return paths, nil
}

// isOrphan tells whether the plan has objects, and none of them exists.
func (p *Plan) isOrphan(exists func(ondemand.ObjectID) bool) bool {
	for _, d := range p.Devices {
		if exists(d.Object) {
			return false
		}
	}
	return len(p.Devices) > 0
}
