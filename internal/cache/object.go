package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Object is one object of a root, open. There is one value for it at a time:
// whoever closes it closes it for all. It is an ondemand.Object.
type Object struct {
	root  *Root
	dir   string // relative to the root
	id    ondemand.ObjectID
	size  int64
	data  file
	found Recovery
	// handedOut: somebody outside has it, and closes it. guests are the Commits that
	// are at it. Guarded by root.mu.
	handedOut bool
	guests    int

	presence *ondemand.Presence // what is present in memory
	complete atomic.Bool        // every block is durable

	saving sync.Mutex // one checkpoint, Invalidate, repair or Close at a time
	saved  *saved     // guarded by saving, but for durable

	filling sync.RWMutex // read while a fill writes; written where blocks become missing
	// unforgotten: disk may claim blocks that are missing in memory. Such
	// blocks must not be written. Guarded by filling.
	unforgotten bool
	closed      bool // guarded by filling; also readable under saving

	mu         sync.Mutex
	meta       Meta
	metaStale  bool             // disk has another meta; written under saving
	fresh      []ondemand.Range // filled, not known to be durable
	freshBytes int64            // filled since the last checkpoint began
}

// Recovery tells what opening an object found otherwise than a clean close
// leaves it. The zero value is: nothing.
type Recovery struct {
	// Reset says why nothing of the object is present any more; empty
	// where the presence file was good.
	Reset string `json:"reset,omitempty"`
	// Holes are ranges that were recorded as present and are holes in the
	// data file. They are missing now.
	Holes []ondemand.Range `json:"holes,omitempty"`
	// BadSlots are places of the presence file that hold no valid page, as a
	// crash during a checkpoint leaves them. The older version, or nothing,
	// counts for their pages.
	BadSlots []BadSlot `json:"bad_slots,omitempty"`
}

// Clean tells whether nothing was amiss.
func (r Recovery) Clean() bool {
	return r.Reset == "" && len(r.Holes) == 0 && len(r.BadSlots) == 0
}

func (o *Object) isClosed() bool {
	o.filling.RLock()
	defer o.filling.RUnlock()
	return o.closed
}

// ID names the object.
func (o *Object) ID() ondemand.ObjectID { return o.id }

// Size is the object's size in bytes.
func (o *Object) Size() int64 { return o.size }

// Meta is the object's description as it is now.
func (o *Object) Meta() Meta {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.meta
	m.Source = slices.Clone(m.Source)
	return m
}

// Has tells whether every byte of r is present.
func (o *Object) Has(r ondemand.Range) bool { return o.presence.Has(r) }

// Missing returns the missing parts of r, widened to blocks.
func (o *Object) Missing(r ondemand.Range) []ondemand.Range { return o.presence.Missing(r) }

// Present is the number of bytes present.
func (o *Object) Present() int64 { return o.presence.Bytes() }

// Complete tells whether every byte is present and durable in the data file.
// The fill that brings the last missing block makes it so before it returns.
func (o *Object) Complete() bool { return o.complete.Load() }

// Recovered tells what opening the object found.
func (o *Object) Recovered() Recovery { return o.found }

// DataPath is the absolute path of the data file.
func (o *Object) DataPath() string { return filepath.Join(o.root.dir, o.dir, dataName) }

// File is the descriptor that fills are written through, opened for reading
// and writing before anybody could mark the file. The object closes it.
func (o *Object) File() *os.File {
	if f, ok := o.data.(osFile); ok {
		return f.File
	}
	return nil
}

// Fill writes p at off and makes its blocks present: whole blocks of the
// object's right, verified bytes. ErrBadFill where off is no block's or p does
// not end with a block or the object. Blocks that are present already are not
// written again. When it fails nothing of it becomes present; ENOSPC, EDQUOT
// and EIO are in the chain.
//
// The fill that brings the last missing block returns once all is durable, and
// fails where that does: Complete then is false, and blocks are missing.
func (o *Object) Fill(p []byte, off int64) error {
	r := ondemand.Range{Off: off, Len: int64(len(p))}
	if off < 0 || r.Len > o.size-off || r.Blocks(o.size) != r {
		return fmt.Errorf("fill %s %v: %w", o.id.Short(), r, ErrBadFill)
	}
	last, err := o.fill(p, r)
	if err == nil && last {
		err = o.finish(r)
	}
	if err != nil {
		return fmt.Errorf("fill %s %v: %w", o.id.Short(), r, err)
	}
	return nil
}

// fill is Fill of a good range; last when no block is missing afterwards.
func (o *Object) fill(p []byte, r ondemand.Range) (last bool, err error) {
	if err := o.beginFill(); err != nil {
		return false, err
	}
	defer o.filling.RUnlock()
	missing := o.presence.Missing(r)
	for _, m := range missing {
		if err := writeAll(o.data, p[m.Off-r.Off:m.End()-r.Off], m.Off); err != nil {
			return false, fmt.Errorf("write data: %w", err)
		}
	}
	for _, m := range missing {
		o.noteFresh(m)
		o.presence.Set(m)
	}
	return len(missing) > 0 && o.presence.Complete(), nil
}

// beginFill takes filling for reading, once disk claims nothing that is missing.
func (o *Object) beginFill() error {
	for {
		o.filling.RLock()
		switch {
		case o.root.readOnly:
			o.filling.RUnlock()
			return ErrReadOnly
		case o.closed:
			o.filling.RUnlock()
			return ErrClosed
		case !o.unforgotten:
			return nil
		}
		o.filling.RUnlock()
		if err := o.forgetDurably(); err != nil {
			return err
		}
	}
}

// noteFresh remembers that r is written and not yet durable.
func (o *Object) noteFresh(r ondemand.Range) {
	o.mu.Lock()
	first := len(o.fresh) == 0
	if n := len(o.fresh); n > 0 && o.fresh[n-1].End() == r.Off {
		o.fresh[n-1].Len += r.Len
	} else {
		o.fresh = append(o.fresh, r)
	}
	before := o.freshBytes
	o.freshBytes += r.Len
	full := before < checkpointBytes && o.freshBytes >= checkpointBytes
	o.mu.Unlock()
	if full {
		o.root.saver.now(o)
	} else if first {
		o.root.saver.later(o)
	}
}

// Invalidate forgets that the blocks of r are present, durably, before it
// returns; an object that was verified is not any more. When it fails the
// blocks are missing in memory all the same, and no fill succeeds until disk
// has forgotten them too.
func (o *Object) Invalidate(r ondemand.Range) error {
	o.saving.Lock()
	defer o.saving.Unlock()
	if err := o.invalidate([]ondemand.Range{r}); err != nil {
		return fmt.Errorf("invalidate %s %v: %w", o.id.Short(), r, err)
	}
	return nil
}

// invalidate is Invalidate of several ranges; saving is held.
func (o *Object) invalidate(ranges []ondemand.Range) error {
	if o.root.readOnly {
		return ErrReadOnly
	}
	if o.closed {
		return ErrClosed
	}
	o.filling.Lock()
	o.mu.Lock()
	for _, r := range ranges {
		o.presence.Clear(r)
		o.saved.forget(r)
		o.fresh = without(o.fresh, r.Blocks(o.size))
	}
	o.mu.Unlock()
	o.unforgotten = o.unforgotten || o.saved.claimsForgotten()
	o.complete.Store(o.saved.durable.Complete())
	o.filling.Unlock()
	o.unverify()
	return o.save()
}

// unverify takes the mark of a verified object away where it is not complete;
// saving is held. It goes to disk before presence does, so that the mark cannot
// outlive what was verified.
func (o *Object) unverify() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.meta.Verified && !o.Complete() {
		o.meta.Verified, o.metaStale = false, true
	}
}

// saveMeta brings the description to disk where it is stale; saving is held.
func (o *Object) saveMeta() error {
	o.mu.Lock()
	m, stale := o.meta, o.metaStale
	o.mu.Unlock()
	if !stale {
		return nil
	}
	return o.setMeta(m)
}

// setMeta replaces the description, on disk first; saving is held.
func (o *Object) setMeta(m Meta) error {
	if err := replaceMeta(o.root.disk, o.dir, m); err != nil {
		return fmt.Errorf("write description: %w", err)
	}
	o.mu.Lock()
	o.meta, o.metaStale = m, false
	o.mu.Unlock()
	return nil
}

// SetVerified records that the whole object was read and had its digest.
// ErrIncomplete where it is not complete.
func (o *Object) SetVerified() error {
	if err := o.Checkpoint(); err != nil {
		return err
	}
	o.saving.Lock()
	defer o.saving.Unlock()
	m := o.Meta()
	switch {
	case o.root.readOnly:
		return fmt.Errorf("verified %s: %w", o.id.Short(), ErrReadOnly)
	case o.closed:
		return fmt.Errorf("verified %s: %w", o.id.Short(), ErrClosed)
	case !o.Complete():
		return fmt.Errorf("verified %s: %w", o.id.Short(), ErrIncomplete)
	case m.Verified:
		return nil
	}
	m.Verified = true
	if err := o.setMeta(m); err != nil {
		return fmt.Errorf("verified %s: %w", o.id.Short(), err)
	}
	return nil
}
