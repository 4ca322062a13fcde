package ondemand

import "time"

// A read of an EROFS file that fails is asked again, by the kernel and at once: it
// reads ahead first, in requests of 16 folios one after the other
// (erofs_fileio_readahead of fs/erofs/fileio.c), and then once more the folio that
// is wanted (filemap_read of mm/filemap.c). Where a source hangs, the reader would
// wait for a deadline each time. So a failure that was waited for holds for a
// moment for what lies near it.

// near is how far the kernel reads ahead of a byte that is wanted, at most.
const near = 1 << 20

// failure is how a request has ended that somebody waited for; r is what it
// speaks for.
type failure struct {
	r   Range
	err error
	at  time.Time
}

// holds is how long a failure is answered again with, and how long
// somebody must have waited for it.
func (t *Table) holds() time.Duration { return min(time.Second, t.deadline/2) }

// rememberLocked keeps err, with which q ends.
func (t *Table) rememberLocked(q *request, err error) {
	id := q.object.ID()
	if t.again == nil || time.Since(q.started) < t.holds() {
		return
	}
	from := max(0, q.r.Off-near)
	r := t.again(id, q.r).Intersect(Range{Off: from, Len: q.r.End() + near - from})
	if r.Empty() {
		return
	}
	var kept []failure
	for _, f := range t.failed[id] {
		if time.Since(f.at) < t.holds() {
			kept = append(kept, f)
		}
	}
	if t.failed == nil {
		t.failed = make(map[ObjectID][]failure)
	}
	t.failed[id] = append(kept, failure{r: r, err: err, at: time.Now()})
}

// rememberedLocked is the error that a read of r ends with at once, nil: none.
func (t *Table) rememberedLocked(id ObjectID, r Range) error {
	for _, f := range t.failed[id] {
		if time.Since(f.at) < t.holds() && r.Overlaps(f.r) {
			return f.err
		}
	}
	return nil
}
