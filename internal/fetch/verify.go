package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// verification is the state of the check of an object's expected digest.
type verification struct {
	done chan struct{} // closed when the one that runs ends; nil while none runs
	err  error         // of the last one
}

// verifyIfDue begins to verify the whole object if it is complete, has an
// expected digest, and was not verified.
func (o *Object) verifyIfDue() {
	d, ok := o.cache.(Digested)
	if !ok || d.SHA256() == "" || !o.cache.Complete() || d.Verified() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.denied.Load() || o.digest.done != nil {
		return
	}
	o.digest = verification{done: make(chan struct{})}
	o.live++
	go o.verify(d)
}

func (o *Object) verify(d Digested) {
	err := o.compare(d)
	if errors.Is(err, ErrDigest) {
		o.giveUp(err)
		if ierr := d.Invalidate(ondemand.Range{Len: o.Size()}); ierr != nil {
			err = errors.Join(err, ierr)
		}
	}
	if err == nil {
		err = d.SetVerified()
	}
	o.mu.Lock()
	closed, done := o.closed, o.digest.done
	o.digest = verification{err: err}
	o.mu.Unlock()
	switch {
	case err == nil:
		o.present(ondemand.Range{Len: o.Size()})
	case !closed:
		o.report(err)
	}
	close(done)
	o.mu.Lock()
	o.live--
	o.ended.Broadcast()
	o.mu.Unlock()
}

// present calls Present outside a stream; a panic there is reported.
func (o *Object) present(r ondemand.Range) {
	defer func() {
		if p := recover(); p != nil {
			o.report(fmt.Errorf("fetch: internal error: %v", p))
		}
	}()
	o.fetcher.options.Present(o.ID(), r)
}

// compare reads the whole object and returns ErrDigest if it is not what it
// must be, and another error if that could not be found out.
func (o *Object) compare(d Digested) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("fetch: internal error: %v", p)
		}
	}()
	memory, err := o.fetcher.memory.acquire(o.ctx, piece, true)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	defer o.fetcher.memory.release(memory)
	buf := o.fetcher.buffers.get(piece)
	defer o.fetcher.buffers.put(buf)
	sum := sha256.New()
	for off := int64(0); off < o.Size(); {
		if err := o.ctx.Err(); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		p := buf[:min(int64(len(buf)), o.Size()-off)]
		if n, err := d.ReadAt(p, off); n < len(p) {
			return fmt.Errorf("verify at %d: %w", off, err)
		}
		if _, err := sum.Write(p); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		off += int64(len(p))
	}
	if !o.cache.Complete() {
		return errors.New("verify: data became missing meanwhile")
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.SHA256() {
		return fmt.Errorf("%w: is sha256 %s, should be %s", ErrDigest, got, d.SHA256())
	}
	return nil
}

// giveUp makes nothing of o count as present, and returns when no stream of it
// runs. It is called by the verification.
func (o *Object) giveUp(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.poison = err
	o.denied.Store(true)
	for _, s := range slices.Clone(o.queue) {
		s.wakeAllLocked()
		o.endQueuedLocked(s)
	}
	for _, s := range o.running {
		s.wakeAllLocked()
		s.unwanted = true
		s.cancel()
	}
	for o.live > 1 {
		o.ended.Wait()
	}
}

// awaitVerified returns once the complete object is verified, if it must be.
func (o *Object) awaitVerified(ctx context.Context) error {
	d, ok := o.cache.(Digested)
	for ok && d.SHA256() != "" && !d.Verified() {
		o.verifyIfDue()
		o.mu.Lock()
		v, poison, closed := o.digest, o.poison, o.closed
		o.mu.Unlock()
		switch {
		case closed:
			return ondemand.ErrDetached
		case poison != nil:
			return poison
		case v.done == nil:
			return v.err // it ended between the two looks
		}
		select {
		case <-v.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		o.mu.Lock()
		err := o.digest.err
		o.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
