package spans

import (
	"slices"
	"sync"
)

// recent are the spans that were decoded last, of all blobs with a gate. Who reads a
// little of a span, such as the header of a file, is as a rule soon followed by
// somebody who reads more of it. The zero value is ready.
type recent struct {
	mu    sync.Mutex
	spans []recentSpan // the one that was used last comes last
	held  int
}

type recentSpan struct {
	of   *Blob
	from int64
	data []byte // all of the span; it is never changed
}

// maxRecent bounds what is held: some spans as builders make them.
const maxRecent = 12 << 20

// get is the span of b's byte at off, and where it begins; nil: it is not there.
func (c *recent) get(b *Blob, off int64) (data []byte, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.getLocked(b, off)
	return s.data, s.from
}

func (c *recent) getLocked(b *Blob, off int64) recentSpan {
	for i := len(c.spans) - 1; i >= 0; i-- {
		s := c.spans[i]
		if s.of == b && off >= s.from && off-s.from < int64(len(s.data)) {
			c.spans = append(slices.Delete(c.spans, i, i+1), s)
			return s
		}
	}
	return recentSpan{}
}

// add holds a span, and gives up those that were not used for longest.
func (c *recent) add(b *Blob, from int64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.getLocked(b, from).of != nil || b.closed.Load() {
		return
	}
	c.spans = append(c.spans, recentSpan{b, from, data})
	c.held += len(data)
	drop := 0
	for ; c.held > maxRecent; drop++ {
		c.held -= len(c.spans[drop].data)
	}
	c.spans = slices.Delete(c.spans, 0, drop)
}

// forget gives up the spans of b.
func (c *recent) forget(b *Blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spans = slices.DeleteFunc(c.spans, func(s recentSpan) bool {
		if s.of == b {
			c.held -= len(s.data)
		}
		return s.of == b
	})
}
