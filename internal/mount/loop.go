package mount

import (
	"os"
	"path/filepath"
	"strings"
)

// LoopDevices are the loop devices, such as /dev/loop0, each with the path of the
// file that it shows.
func LoopDevices() (map[string]string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for _, name := range backing {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // taken away meanwhile
		}
		found["/dev/"+filepath.Base(filepath.Dir(filepath.Dir(name)))] = strings.TrimSuffix(string(b), "\n")
	}
	return found, nil
}
