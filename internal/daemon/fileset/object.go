package fileset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source/concat"
)

// Object is the cache's object as a fetch.Fetcher takes it: without what is denied
// of it, and complete only when all is verified that can be.
func (s *Set) Object() fetch.CacheObject { return &object{fetch.Cached(s.cached), s} }

// object embeds the interface, so that it is no fetch.Digested.
type object struct {
	fetch.CacheObject
	set *Set
}

// deniedIn are the ranges of the parts in r that are denied.
func (s *Set) deniedIn(r ondemand.Range) (list []ondemand.Range) {
	if !s.anyDenied.Load() {
		return nil
	}
	first, last := s.blob.Parts(r.Off, r.Len)
	for n := first; n < last; n++ {
		if s.denied[n].Load() {
			list = append(list, s.device.Parts[n].Range())
		}
	}
	return list
}

// Has implements ondemand.Object.
func (o *object) Has(r ondemand.Range) bool {
	return o.CacheObject.Has(r) && len(o.set.deniedIn(r)) == 0
}

// Missing implements ondemand.Object: what is denied is missing.
func (o *object) Missing(r ondemand.Range) []ondemand.Range {
	missing := o.CacheObject.Missing(r)
	denied := o.set.deniedIn(r)
	if len(denied) == 0 {
		return missing
	}
	wide := r.Blocks(o.Size())
	for _, d := range denied {
		missing = append(missing, d.Intersect(wide))
	}
	slices.SortFunc(missing, func(a, b ondemand.Range) int {
		if a.Off < b.Off {
			return -1
		}
		return 1
	})
	var joined []ondemand.Range
	for _, m := range missing {
		if n := len(joined); n > 0 && m.Off <= joined[n-1].End() {
			joined[n-1].Len = max(joined[n-1].End(), m.End()) - joined[n-1].Off
			continue
		}
		joined = append(joined, m)
	}
	return joined
}

// Complete implements ondemand.Object.
func (o *object) Complete() bool {
	return o.CacheObject.Complete() && o.set.unchecked.Load() == 0 && !o.set.anyDenied.Load()
}

// Fill implements fetch.CacheObject.
func (o *object) Fill(p []byte, off int64) error {
	r := ondemand.Range{Off: off, Len: int64(len(p))}
	if len(o.set.deniedIn(r)) > 0 {
		return concat.ErrDigest
	}
	if err := o.CacheObject.Fill(p, off); err != nil {
		return err
	}
	o.set.verifyComplete(o.set.blob.Parts(off, r.Len))
	return nil
}

// verifyComplete begins to verify those of the parts [first, last) that are all
// present, have a digest, and were not verified before they were.
func (s *Set) verifyComplete(first, last int) {
	for n := first; n < last; n++ {
		p := &s.device.Parts[n]
		if p.SHA256 == "" || s.whole(n) || !s.cached.Has(p.Range()) {
			continue
		}
		s.mu.Lock()
		st := s.states[n]
		if !s.closed && !s.busy[n] && !st.Verified && !st.Wrong {
			if len(s.busy) == 0 {
				s.idle = make(chan struct{})
			}
			s.busy[n] = true
			s.tasks.Go(func() { s.verify(n) })
		}
		s.mu.Unlock()
	}
}

// verify compares a part with its digest.
func (s *Set) verify(n int) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return
	}
	p := &s.device.Parts[n]
	err := s.compare(p)
	if errors.Is(err, concat.ErrDigest) {
		s.deny(n)
	}
	s.mu.Lock()
	if delete(s.busy, n); len(s.busy) == 0 {
		defer close(s.idle)
	}
	st := s.states[n]
	switch {
	case s.ctx.Err() != nil:
		s.mu.Unlock()
		return
	case err == nil:
		st.Verified = true
		s.unchecked.Add(-1)
	case errors.Is(err, concat.ErrDigest):
		st.Wrong = true
		s.failed[n] = err
		delete(s.blobs, n)
	}
	s.states[n] = st
	noted := s.ledger.write(st)
	if st.Wrong {
		noted = errors.Join(noted, s.ledger.sync())
	}
	s.mu.Unlock()
	if st.Wrong {
		noted = errors.Join(noted, s.cached.Invalidate(p.Range()))
	}
	if err := errors.Join(err, noted); err != nil {
		s.o.Report("verifying "+p.Path, err)
	}
	if err == nil && s.unchecked.Load() == 0 && s.cached.Complete() && s.o.Complete != nil {
		s.o.Complete()
	}
}

// deny takes a part out of what is handed out.
func (s *Set) deny(n int) {
	s.denied[n].Store(true)
	s.anyDenied.Store(true)
}

// compare reads a part that is present.
func (s *Set) compare(p *Part) error {
	sum := sha256.New()
	buf := make([]byte, 256<<10)
	for off := int64(0); off < p.Size; {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		piece := buf[:min(int64(len(buf)), p.Size-off)]
		// Through the descriptor that was open before the file was marked.
		if n, err := s.cached.File().ReadAt(piece, p.Off+off); n < len(piece) {
			return fmt.Errorf("read what is present of %s at %d: %w", p.Path, off, err)
		}
		if _, err := sum.Write(piece); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	if !s.cached.Has(p.Range()) {
		return errors.New("data became missing meanwhile")
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.SHA256 {
		return fmt.Errorf("%s: %w: it is %s, and should be %s", p.Path, concat.ErrDigest, got, p.SHA256)
	}
	return nil
}
