package daemon

import (
	"sync"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// fileCounts counts, for status, the files of which something is present. Where
// the files of a layer lie is read when status first asks, and kept while the
// layer is mounted: 16 bytes a file.
type fileCounts struct {
	mu     sync.Mutex
	places map[ondemand.ObjectID][]ondemand.Range
}

// countedLayer is a layer's device whose files are to be counted.
type countedLayer struct {
	cached *cache.Object
	layer  prepare.Layer
}

// countFiles adds to the mounts of a status the numbers of files. It is called
// without mu held: a table of contents may be large.
func (i *Instance) countFiles(mounts []control.Mounted, layers map[ondemand.ObjectID]countedLayer) {
	c := &i.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.places {
		if _, mounted := layers[id]; !mounted {
			delete(c.places, id)
		}
	}
	for _, m := range mounts {
		for n := range m.Layers {
			l := &m.Layers[n]
			counted, found := layers[ondemand.ObjectID(l.Object)]
			if !found {
				continue
			}
			files := i.filesLocked(counted.layer)
			l.Files, l.FilesPresent = len(files), len(files)-allMissing(files, counted.cached.Missing(ondemand.Range{Len: l.Size}))
		}
	}
}

// filesLocked is where a layer's files lie in its device, none where its table of
// contents cannot be read, which is told once. It is called with counts.mu held.
func (i *Instance) filesLocked(l prepare.Layer) []ondemand.Range {
	files, known := i.counts.places[l.Device]
	if known {
		return files
	}
	files, err := i.library.Files(l)
	if err != nil {
		i.report("counting the files of a layer", err)
	}
	if i.counts.places == nil {
		i.counts.places = make(map[ondemand.ObjectID][]ondemand.Range)
	}
	i.counts.places[l.Device] = files
	return files
}

// allMissing counts the files of which nothing is present. Both lists are in order,
// and ranges of missing blocks do not meet.
func allMissing(files, missing []ondemand.Range) (n int) {
	for _, f := range files {
		for len(missing) > 0 && missing[0].End() < f.End() {
			missing = missing[1:]
		}
		if len(missing) > 0 && missing[0].Contains(f) {
			n++
		}
	}
	return n
}
