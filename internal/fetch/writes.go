package fetch

import (
	"slices"
	"sync"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// writes are the ranges of an object that are being written to its file now.
type writes struct {
	mu  sync.Mutex
	now []ondemand.Range
}

// begin notes that r is about to be written; end is called once it was.
func (w *writes) begin(r ondemand.Range) (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = append(w.now, r)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.Index(w.now, r)
		w.now = slices.Delete(w.now, i, i+1)
	}
}

// cover tells whether one of them contains r.
func (w *writes) cover(r ondemand.Range) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.now, func(now ondemand.Range) bool { return now.Contains(r) })
}
