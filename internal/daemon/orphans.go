package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Orphans finds the files and directories of a cache root that were made for objects
// which are gone: filesystem images and tables of contents. What a record names is
// none; with a record that cannot be read nothing is known to be one. Beside an
// instance it may name what that is making.
func Orphans(root *cache.Root) ([]string, error) {
	paths, err := orphans(root)
	if err != nil {
		return nil, fmt.Errorf("look for what belongs to no object: %w", err)
	}
	return paths, nil
}

func orphans(root *cache.Root) ([]string, error) {
	ids, err := root.List()
	if err != nil {
		return nil, err
	}
	list, err := records{filepath.Join(root.Dir(), "served")}.list()
	if err != nil {
		return nil, err
	}
	needed, plans := make(map[ondemand.ObjectID]bool), make(map[string]bool)
	for _, id := range ids {
		needed[id] = true
	}
	for _, rec := range list {
		needed[ondemand.ObjectID(rec.Object)] = true
		plans[rec.Plan] = true
	}
	exists := func(id ondemand.ObjectID) bool { return needed[id] }
	paths, err := prepare.Orphans(root.Dir(), exists, func(key string) bool { return plans[key] })
	if err != nil {
		return nil, err
	}
	listed, err := fileset.Orphans(root.Dir(), exists, func(key string) bool { return plans[key] })
	if err != nil {
		return nil, err
	}
	paths = append(paths, listed...)
	entries, err := os.ReadDir(filepath.Join(root.Dir(), filesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if ok && !exists(ondemand.ObjectID(id)) || strings.HasPrefix(e.Name(), ".new-") {
			paths = append(paths, filepath.Join(root.Dir(), filesDir, e.Name()))
		}
	}
	return paths, nil
}

// RemoveOrphans removes what Orphans finds, and returns what it has removed. The
// root must be one that no instance has, so that nothing is being made.
func RemoveOrphans(root *cache.Root) (removed []string, err error) {
	paths, err := Orphans(root)
	if err != nil {
		return nil, err
	}
	for n, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			return paths[:n], fmt.Errorf("remove what belongs to no object: %w", err)
		}
	}
	return paths, nil
}
