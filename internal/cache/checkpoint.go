package cache

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// When a checkpoint is due, besides completion.
const (
	checkpointBytes = 64 << 20        // filled since the last
	checkpointAge   = 5 * time.Second // since the first fill after the last
)

// dataError says that the data file could not be made durable, so that what
// was filled since the last good checkpoint is missing again.
type dataError struct{ err error }

func (e *dataError) Error() string { return "sync data: " + e.err.Error() }
func (e *dataError) Unwrap() error { return e.err }

// Is makes it an ErrLost.
func (e *dataError) Is(target error) bool { return target == ErrLost }

// Checkpoint makes all fills that have returned durable, data first and then
// presence. When the data cannot be made durable, everything filled since the
// last good checkpoint is missing again. When presence cannot, the data stays
// present, and the next checkpoint tries again.
func (o *Object) Checkpoint() error {
	o.saving.Lock()
	defer o.saving.Unlock()
	if err := o.checkpoint(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", o.id.Short(), err)
	}
	return nil
}

// finish makes what was filled durable where nothing may follow, as behind the last
// missing block. Presence that could not be written is no error of the fill: its
// bytes are there.
func (o *Object) finish(filled ...ondemand.Range) error {
	o.saving.Lock()
	defer o.saving.Unlock()
	err := o.checkpoint()
	var lost *dataError
	if errors.As(err, &lost) {
		return err
	}
	lacks := func(r ondemand.Range) bool { return !o.presence.Has(r) }
	if slices.ContainsFunc(filled, lacks) {
		// Another checkpoint came first, and failed.
		return errors.Join(errors.New("lost before it was durable"), err)
	}
	if err == nil {
		return nil
	}
	o.root.onError(o.id, fmt.Errorf("checkpoint %s: %w", o.id.Short(), err))
	o.root.saver.later(o)
	return nil
}

// checkpoint is Checkpoint with saving held.
func (o *Object) checkpoint() error {
	if o.closed || o.root.readOnly {
		return nil
	}
	o.mu.Lock()
	fresh := o.fresh
	o.fresh, o.freshBytes = nil, 0
	o.mu.Unlock()
	if len(fresh) > 0 {
		if err := o.data.Datasync(); err != nil {
			o.lose(fresh)
			return &dataError{err}
		}
		for _, r := range fresh {
			o.saved.record(r)
		}
		o.complete.Store(o.saved.durable.Complete())
	}
	return o.save()
}

// save brings presence to disk; saving is held.
func (o *Object) save() error {
	if err := o.saveMeta(); err != nil {
		return err
	}
	if err := o.saved.save(); err != nil {
		return err
	}
	o.filling.Lock()
	o.unforgotten = false
	o.filling.Unlock()
	return nil
}

// lose makes missing what was filled and is not known to be durable: fresh,
// and what was filled since it was taken, because an error of writing that
// back may have been reported by the sync that failed. saving is held.
func (o *Object) lose(fresh []ondemand.Range) {
	o.filling.Lock()
	defer o.filling.Unlock()
	o.mu.Lock()
	fresh = append(fresh, o.fresh...)
	o.fresh, o.freshBytes = nil, 0
	o.mu.Unlock()
	for _, r := range fresh {
		// A block that was durable before holds the same bytes.
		for _, m := range o.saved.durable.Missing(r) {
			o.presence.Clear(m)
		}
	}
}

// forgetDurably brings to disk that blocks are missing, where an Invalidate is
// at it or has failed.
func (o *Object) forgetDurably() error {
	o.saving.Lock()
	defer o.saving.Unlock()
	if o.closed {
		return ErrClosed
	}
	return o.save()
}

// Close checkpoints the object and closes its files. A second call does nothing.
func (o *Object) Close() error {
	if err := o.end(o.checkpoint); err != nil {
		return fmt.Errorf("close %s: %w", o.id.Short(), err)
	}
	return nil
}

// discard closes the object without a checkpoint; errors do not matter,
// because it is about to be removed.
func (o *Object) discard() {
	if err := o.end(func() error { return nil }); err != nil {
		o.root.onError(o.id, fmt.Errorf("close %s: %w", o.id.Short(), err))
	}
}

// end closes the object after last, once.
func (o *Object) end(last func() error) error {
	// Root.mu comes before saving in the order of locks.
	defer o.root.drop(o)
	return o.shut(last)
}

// shut is end without taking the object off the list of open ones.
func (o *Object) shut(last func() error) error {
	o.saving.Lock()
	defer o.saving.Unlock()
	if o.closed {
		return nil
	}
	return errors.Join(last(), o.closeFiles())
}

// closeFiles ends the use of the object; saving is held.
func (o *Object) closeFiles() error {
	o.filling.Lock()
	o.closed = true
	o.filling.Unlock()
	if o.root.saver != nil {
		o.root.saver.forget(o)
	}
	err := o.data.Close()
	if o.saved.file != nil {
		err = errors.Join(err, o.saved.file.Close())
	}
	return err
}

// checkpointer checkpoints objects when they are due, in one goroutine.
type checkpointer struct {
	age    time.Duration
	failed func(*Object, error)
	wake   chan struct{} // capacity 1
	stop   chan struct{}
	done   chan struct{}

	mu  sync.Mutex
	due map[*Object]time.Time
}

func newCheckpointer(age time.Duration, failed func(*Object, error)) *checkpointer {
	c := &checkpointer{
		age: age, failed: failed,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		due: map[*Object]time.Time{},
	}
	go c.run()
	return c
}

// later makes o due when it has been dirty for long enough.
func (c *checkpointer) later(o *Object) { c.schedule(o, time.Now().Add(c.age)) }

// now makes o due at once.
func (c *checkpointer) now(o *Object) { c.schedule(o, time.Time{}) }

func (c *checkpointer) schedule(o *Object, when time.Time) {
	c.mu.Lock()
	if old, ok := c.due[o]; ok && !when.Before(old) {
		c.mu.Unlock()
		return
	}
	c.due[o] = when
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// forget takes o off the list.
func (c *checkpointer) forget(o *Object) {
	c.mu.Lock()
	delete(c.due, o)
	c.mu.Unlock()
}

// take removes and returns what is due, and says how long until more is.
func (c *checkpointer) take() (due []*Object, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	for o, when := range c.due {
		if left := when.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		delete(c.due, o)
		due = append(due, o)
	}
	return due, wait
}

func (c *checkpointer) run() {
	defer close(c.done)
	for {
		due, wait := c.take()
		for _, o := range due {
			if err := o.Checkpoint(); err != nil {
				c.failed(o, err)
				c.later(o)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-c.stop:
			timer.Stop()
			return
		case <-c.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// close ends the goroutine, after the checkpoint that is in progress.
func (c *checkpointer) close() {
	close(c.stop)
	<-c.done
}
