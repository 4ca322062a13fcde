package fileset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/concat"
	"github.com/lacunafs/lacuna/internal/source/late"
)

// Sources are how the sources of parts are spoken to.
type Sources struct {
	// Ask opens a URL or path, and asks what it has.
	Ask func(ctx context.Context, name string) (source.Blob, error)
	// Reopen opens it as it was, and asks nothing.
	Reopen func(name string, id source.Identity, sequential bool) (source.Blob, error)
	// Wrap adds what all requests have.
	Wrap func(name string, blob source.Blob) source.Blob
}

// Found is what a source has said.
type Found struct {
	Identity   source.Identity
	Sequential bool
}

// Options of a Set.
type Options struct {
	Sources Sources
	// Anew: nobody reads the device now, so that parts whose source has changed,
	// or cannot be recognised, may be asked for afresh.
	Anew bool
	// Found is what sources have said just now, by the path of the part; for
	// Anew only.
	Found map[string]Found
	// Report is told what no reader is.
	Report func(what string, err error)
	// Complete is called when the device is complete and all of it verified that
	// can be, unless it was from the start.
	Complete func()
}

// maxBlobs is how many parts' blobs are kept for the next reading.
const maxBlobs = 4096

// verifyAtOnce is how many parts of a device are verified at the same time.
const verifyAtOnce = 2

// Set is a device of which the parts are fetched from their sources.
type Set struct {
	device Device
	cached *cache.Object
	blob   *concat.Blob
	ledger *ledger
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	slots  chan struct{} // of verifications

	denied    []atomic.Bool // by part: nothing of it is handed out
	anyDenied atomic.Bool
	unchecked atomic.Int64 // parts that are still to be verified whole

	mu     sync.Mutex
	closed bool
	states []state
	blobs  map[int]source.Blob
	busy   map[int]bool  // parts that are being verified
	idle   chan struct{} // closed while none is
	failed map[int]error
}

// Open makes a Set of a device and its object. What of it cannot be known to be of
// one version is missing when it returns. The object stays the caller's.
func (l *Library) Open(d Device, cached *cache.Object, o Options) (*Set, error) {
	s := &Set{
		device: d, cached: cached, o: o, slots: make(chan struct{}, verifyAtOnce),
		denied: make([]atomic.Bool, len(d.Parts)),
		blobs:  make(map[int]source.Blob), busy: make(map[int]bool), failed: make(map[int]error),
		idle: make(chan struct{}),
	}
	close(s.idle)
	parts := make([]concat.Part, len(d.Parts))
	for n := range d.Parts {
		var err error
		if parts[n], err = d.Parts[n].place(); err != nil {
			return nil, err
		}
	}
	var err error
	s.blob, err = concat.New(concat.Options{Size: d.Size, Parts: parts, Open: s.open, Tell: s.tell, Close: s.close, Name: s.path})
	if err != nil {
		return nil, err
	}
	name := l.ledgerName(d.Object)
	var size int64
	if s.states, size, err = readLedger(name, len(d.Parts)); err != nil {
		return nil, err
	}
	before := slices.Clone(s.states)
	if err := s.settle(); err != nil {
		return nil, err
	}
	if o.Anew && !slices.Equal(before, s.states) {
		if err := rewriteLedger(name, s.states); err != nil {
			return nil, err
		}
		if _, size, err = readLedger(name, len(d.Parts)); err != nil {
			return nil, err
		}
	}
	if s.ledger, err = openLedger(name, size); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.verifyComplete(0, len(d.Parts))
	return s, nil
}

// settle decides what the ledger means for each part.
func (s *Set) settle() error {
	for n := range s.states {
		st, p := &s.states[n], &s.device.Parts[n]
		if s.whole(n) {
			continue // verified before it is present, of whatever version
		}
		if s.o.Anew {
			s.renew(st, p)
		}
		if !st.Bound && s.present(p) {
			if err := s.cached.Invalidate(p.Range()); err != nil {
				return err
			}
		}
		st.Verified = st.Verified && s.cached.Has(p.Range()) // and nothing had to be repaired
		if st.Wrong {
			s.deny(n)
			s.failed[n] = fmt.Errorf("%w: it should be %s", concat.ErrDigest, p.SHA256)
		}
		if st.Changed {
			s.failed[n] = errChanged
		}
		if p.SHA256 != "" && !st.Verified {
			s.unchecked.Add(1)
		}
	}
	return nil
}

var errChanged = fmt.Errorf("%w; mount the manifest anew to take the new version", source.ErrChanged)

// renew unbinds a part where its source has, or may have, another version.
func (s *Set) renew(st *state, p *Part) {
	found, asked := s.o.Found[p.Path]
	switch {
	case st.Verified && p.SHA256 != "":
		return
	case st.Changed, st.Wrong:
		*st = state{Part: st.Part}
	case st.Bound && p.SHA256 != "" && st.Source != digestOf(p.URL):
		*st = state{Part: st.Part, Bound: true} // another source of the same bytes
	case st.Validator == "", asked && found.Identity.Validator != st.Validator:
		*st = state{Part: st.Part}
	}
	if !st.Bound && found.Identity.Validator != "" && !s.present(p) {
		*st = state{
			Part: st.Part, Bound: true, Source: digestOf(p.URL),
			Validator: found.Identity.Validator, Sequential: found.Sequential,
		}
	}
}

// present tells whether any of the part is.
func (s *Set) present(p *Part) bool {
	r := p.Range()
	missing := s.cached.Missing(r)
	return len(missing) != 1 || missing[0] != r
}

func digestOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

func (s *Set) path(n int) string { return s.device.Parts[n].Path }

// whole tells whether a part is verified before any of it is present.
func (s *Set) whole(n int) bool {
	p := &s.device.Parts[n]
	return p.SHA256 != "" && p.Size <= concat.MaxWhole
}

// open returns the blob of a part.
func (s *Set) open(n int) (source.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, p := s.states[n], &s.device.Parts[n]
	switch {
	case s.closed:
		return nil, ondemand.ErrDetached
	case st.Wrong:
		return nil, concat.ErrDigest
	case st.Changed:
		return nil, errChanged
	}
	if b := s.blobs[n]; b != nil {
		return b, nil
	}
	var b source.Blob
	var err error
	known := st.Bound && st.Source == digestOf(p.URL)
	if known || s.whole(n) && !filepath.IsAbs(p.URL) {
		// Of a part that is verified first any version will do, so that its source
		// is not asked which it has.
		if b, err = s.o.Sources.Reopen(p.URL, st.identity(p.Size), st.Sequential); err != nil {
			return nil, err
		}
	} else {
		b = late.New(late.Opener{
			Size: p.Size, Bound: func(got source.Blob) error { return s.bind(n, got) },
			Open: func(ctx context.Context) (source.Blob, error) { return s.o.Sources.Ask(ctx, p.URL) },
		})
	}
	b = s.o.Sources.Wrap(p.URL, b)
	if len(s.blobs) >= maxBlobs {
		for other := range s.blobs { // any: a blob holds nothing while it is not read
			delete(s.blobs, other)
			break
		}
	}
	s.blobs[n] = b
	return b, nil
}

// bind notes the version that the source of a part has, before a byte of it is read.
func (s *Set) bind(n int, got source.Blob) error {
	p := &s.device.Parts[n]
	if s.whole(n) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[n]
	id := source.IdentityOf(got)
	from := digestOf(p.URL)
	if st.Source == from && (st.Validator != id.Validator) {
		return source.ErrChanged // bound meanwhile
	}
	st.Bound, st.Source, st.Validator, st.Sequential = true, from, id.Validator, source.IsSequential(got)
	if err := s.ledger.write(st); err != nil {
		return err
	}
	s.states[n] = st
	return nil
}

// tell notes how a reading of a part ended.
func (s *Set) tell(n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[n]
	whole := s.whole(n)
	switch {
	case s.closed || st.Wrong || st.Changed:
		return
	case err == nil:
		delete(s.failed, n)
		if whole {
			delete(s.blobs, n) // it is all there
		}
		return
	}
	s.failed[n] = err
	if !errors.Is(err, source.ErrChanged) {
		return
	}
	delete(s.blobs, n)
	if whole || st.Source != digestOf(s.device.Parts[n].URL) {
		return // nothing is present of another version: the next reading asks anew
	}
	st.Changed = true
	s.states[n] = st
	s.failed[n] = errChanged
	if err := s.ledger.write(st); err != nil {
		s.o.Report("noting that "+s.device.Parts[n].Path+" has changed", err)
	}
}

// close is the end of the Set: it closes with its blob, once nothing is filled any more.
func (s *Set) close() error {
	s.mu.Lock()
	s.closed = true
	blobs := s.blobs
	s.blobs = nil
	s.mu.Unlock()
	s.cancel()
	s.tasks.Wait()
	var errs []error
	for _, b := range blobs {
		errs = append(errs, b.Close())
	}
	return errors.Join(append(errs, s.ledger.close())...)
}

// Blob is the device as a source; closing it closes the Set.
func (s *Set) Blob() source.Blob { return s.blob }

// Failed are the parts that cannot be had, with the reason, by their paths.
func (s *Set) Failed() []Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Failure
	for n, err := range s.failed {
		list = append(list, Failure{Part: s.device.Parts[n], Err: err})
	}
	slices.SortFunc(list, func(a, b Failure) int { return strings.Compare(a.Part.Path, b.Part.Path) })
	return list
}

// Failure is a part that cannot be had.
type Failure struct {
	Part Part
	Err  error
}

// AwaitVerified returns when no part is being verified: what is present then and has a
// digest was compared with it, and is among Failed where it does not have it.
func (s *Set) AwaitVerified(ctx context.Context) error {
	for {
		s.mu.Lock()
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-idle:
			s.mu.Lock()
			none := len(s.busy) == 0 // and not one that has just begun
			s.mu.Unlock()
			if none {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return ondemand.ErrDetached
		}
	}
}

// Verified counts the parts with a digest, and those of which what is present is
// known to have it.
func (s *Set) Verified() (digests, verified int) {
	for n := range s.device.Parts {
		if s.device.Parts[n].SHA256 != "" {
			digests++
		}
	}
	return digests, digests - int(s.unchecked.Load())
}
