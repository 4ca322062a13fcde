// Package fanotify is the front end over pre-content events (FAN_PRE_ACCESS,
// Linux 6.14): the kernel stops a read of a marked file and asks; the front end
// answers at once where the range is present, and otherwise when the request
// table says so.
//
// Each event is answered exactly once, whatever happens. The rules against
// waiting for ourselves: one thread reads events and never fills; what this
// process writes is let through at once; the answer is written before the event's
// descriptor is closed, because the kernel knows events by that number only.
//
// The last close of a group lets every reader through to the holes. So the
// group and the Inflight table belong to a keeper as well, and Adopt goes on
// where a process that died has stopped.
package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Options are the parts of a FrontEnd. All but Exempt and OnError are needed.
type Options struct {
	// Group is a fanotify group, made by sys.FanotifyInit here or in a
	// process that died. The front end does not close it.
	Group *sys.FD
	// Inflight is the table that goes with Group; not closed either.
	Inflight *Inflight
	// Table takes the misses.
	Table *ondemand.Table
	// Descriptors is how many descriptors events and attached objects may
	// hold together: an unanswered event one, an object PerObject. More
	// readers wait in the kernel's queue. Where a fill may itself need an
	// event to be read, they get EAGAIN once nothing is answered for a second.
	Descriptors int
	// OnError is told what no reader can be told, nil: dropped.
	OnError func(error)
}

// FrontEnd serves the attached objects of one fanotify group.
type FrontEnd struct {
	o   Options
	pid int
	// answered has a token when an answer was given while Serve waited for one.
	answered chan struct{}

	// mu guards attached and its entries' marks. It is never held during a
	// Submit or an answer.
	mu       sync.RWMutex
	attached map[sys.Inode]*attachment

	open    atomic.Int64 // events taken and not answered
	objects atomic.Int64 // in attached
	starved atomic.Bool  // the reading loop waits for open to fall
	answers sync.WaitGroup
	burst   burst
	adopted bool
	raised  atomic.Bool // fills may raise events: see stall
	crowded bool        // Serve's own: see stall
}

// stall is how long Serve waits for an answer when there are as many unanswered
// events as there may be, before it looks whether waiting can help. Where files
// are filled by their path, or were marked before this process opened them, the
// answer that it waits for may need an event to be read: that of a fill's write.
// Then it reads on, lets through what need not sleep and denies other reads with
// EAGAIN, until there is room again. Elsewhere the table's deadline makes room.
const stall = time.Second

// PerObject is how many descriptors an attached object is reckoned to hold here
// and in the cache, that of its mark included.
const PerObject = 5

// attachment is one marked file.
type attachment struct {
	object ondemand.Object
	file   *sys.FD // O_PATH: names the inode for the marks
	inode  sys.Inode
	exempt func(pid int) bool
	marked atomic.Bool
	// detached is set before Detach flushes the table for the last time.
	detached atomic.Bool
	// events counts those that were looked up and not answered; it grows
	// only under mu and while the entry is in attached.
	events sync.WaitGroup
	hits   atomic.Uint64
	misses atomic.Uint64
}

// Stats are counters of one attached object.
type Stats struct {
	// Hits are reads that found everything present, Misses those that had
	// to wait. Reads of complete objects raise no event and are not counted.
	Hits, Misses uint64
	// Marked tells whether the kernel still asks for each read.
	Marked bool
}

// ErrAttached: the file serves another object already.
var ErrAttached = errors.New("file is attached already")

// ErrNotAttached: no such object is attached.
var ErrNotAttached = errors.New("object is not attached")

// New makes a front end. Serve must run for answers to be given.
func New(o Options) *FrontEnd {
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return &FrontEnd{
		o: o, pid: os.Getpid(), answered: make(chan struct{}, 1),
		attached: make(map[sys.Inode]*attachment),
	}
}

// Close frees what New and Attach made. Marks stay: the group's holder goes on.
// Serve must have returned.
func (f *FrontEnd) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	for _, a := range f.attached {
		err = errors.Join(err, a.file.Close())
	}
	clear(f.attached)
	return err
}

// Attach serves reads of the file at path as reads of object: from its return
// on, whoever opens the file is stopped at holes. What was opened before is not.
// Events of processes for which exempt, which may be nil, says so are let through at
// once: the one who fills the file by its path would wait for itself.
func (f *FrontEnd) Attach(object ondemand.Object, path string, exempt func(pid int) bool) error {
	file, err := sys.OpenPath(path)
	if err != nil {
		return fmt.Errorf("attach %s: %w", object.ID().Short(), err)
	}
	inode, err := sys.InodeOf(file.Int())
	if err != nil {
		return errors.Join(fmt.Errorf("attach %s: %w", object.ID().Short(), err), file.Close())
	}
	a := &attachment{object: object, file: file, inode: inode, exempt: exempt}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.attached[inode]; old != nil {
		err := fmt.Errorf("attach %s: %w as %s", path, ErrAttached, old.object.ID().Short())
		return errors.Join(err, file.Close())
	}
	// Known before marked: an event for an unknown file is denied.
	f.attached[inode] = a
	defer f.countLocked()
	if object.Complete() {
		// One that a process before this one has left would never go.
		err := sys.FanotifyUnmark(f.o.Group, file)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		delete(f.attached, inode)
		return errors.Join(fmt.Errorf("attach %s: %w", path, err), file.Close())
	}
	if err := sys.FanotifyMark(f.o.Group, file); err != nil {
		delete(f.attached, inode)
		return errors.Join(fmt.Errorf("attach %s: %w", path, err), file.Close())
	}
	a.marked.Store(true)
	if exempt != nil {
		f.raised.Store(true)
	}
	return nil
}

// Detach takes the object out of service: pending reads of it end with
// ErrDetached, and it returns when they have been answered. The file must not
// be reachable for readers any more, unless it is complete: holes of a file
// without a mark read as zeros.
func (f *FrontEnd) Detach(id ondemand.ObjectID) error { return f.detach(id, f.unmarkLocked) }

// Deny takes the object out of service and leaves its file marked: whoever reads it
// by a way that is left is denied.
func (f *FrontEnd) Deny(id ondemand.ObjectID) error {
	return f.detach(id, func(*attachment) error { return nil })
}

func (f *FrontEnd) detach(id ondemand.ObjectID, unmark func(*attachment) error) error {
	a := f.find(id)
	if a == nil {
		return fmt.Errorf("detach %s: %w", id.Short(), ErrNotAttached)
	}
	f.flush(a)
	f.mu.Lock()
	err := unmark(a)
	if f.attached[a.inode] == a {
		delete(f.attached, a.inode)
	}
	f.countLocked()
	f.mu.Unlock()
	// A read that had been looked up before the deletion may have entered
	// the table after the flush, or is about to: then submit flushes it.
	a.detached.Store(true)
	f.flush(a)
	a.events.Wait()
	return errors.Join(err, a.file.Close())
}

func (f *FrontEnd) countLocked() { f.objects.Store(int64(len(f.attached))) }

func (f *FrontEnd) flush(a *attachment) {
	id := a.object.ID()
	f.o.Table.Flush(id, fmt.Errorf("read %s: %w", id.Short(), ondemand.ErrDetached))
}

// submit enters a miss into the table, which answers it.
func (f *FrontEnd) submit(a *attachment, r ondemand.Range, reader ondemand.Reader, answer func(error)) {
	f.o.Table.Submit(a.object, r, reader, answer)
	if a.detached.Load() {
		f.flush(a)
	}
}

func (f *FrontEnd) find(id ondemand.ObjectID) *attachment {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, a := range f.attached {
		if a.object.ID() == id {
			return a
		}
	}
	return nil
}

// StatsOf returns the object's counters, and false where it is not attached.
func (f *FrontEnd) StatsOf(id ondemand.ObjectID) (Stats, bool) {
	a := f.find(id)
	if a == nil {
		return Stats{}, false
	}
	return Stats{Hits: a.hits.Load(), Misses: a.misses.Load(), Marked: a.marked.Load()}, true
}

// Settle removes the mark of the object if it is complete, so that its reads run at
// native speed. The front end does so by itself when it next sees a read.
func (f *FrontEnd) Settle(id ondemand.ObjectID) error {
	if a := f.find(id); a != nil && a.object.Complete() {
		return f.unmark(a)
	}
	return nil
}

func (f *FrontEnd) unmark(a *attachment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unmarkLocked(a)
}

func (f *FrontEnd) unmarkLocked(a *attachment) error {
	if !a.marked.Swap(false) {
		return nil
	}
	if err := sys.FanotifyUnmark(f.o.Group, a.file); err != nil {
		return fmt.Errorf("unmark %s: %w", a.object.ID().Short(), err)
	}
	return nil
}

// Serve reads and answers events until ctx ends; events that are open then stay
// so. With an error there may be events whose number was lost: only a process that
// starts with Occupy can answer them. Nothing is filled on Serve's goroutine.
//
// It waits in the runtime's poller rather than on a thread of its own: what it
// starts for a miss then runs on the same processor the moment it waits again,
// where another thread would have to be woken and to steal it first.
func (f *FrontEnd) Serve(ctx context.Context) (err error) {
	dup, err := f.o.Group.Dup()
	if err != nil {
		return err
	}
	// Whoever handed the group on may have made it blocking, for all holders.
	if err := sys.SetNonblock(dup.Int(), true); err != nil {
		return errors.Join(err, dup.Close())
	}
	group := dup.File("fanotify group")
	stop := context.AfterFunc(ctx, func() {
		// The only error is that group is closed, and then nobody waits.
		if group.SetReadDeadline(time.Unix(1, 0)) != nil {
			return
		}
	})
	defer func() {
		stop()
		err = errors.Join(err, group.Close())
	}()
	events, err := group.SyscallConn()
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	used := len(f.o.Inflight.buffer())
	for ctx.Err() == nil {
		if !f.waitForRoom(ctx) {
			return nil
		}
		n, err := f.read(events, used)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		used = n
		if err := f.batch(f.o.Inflight.buffer()[:n]); err != nil {
			return err
		}
	}
	return nil
}

// read waits for events and reads them into the shared buffer, of which the
// first used bytes are from before and are wiped.
func (f *FrontEnd) read(events syscall.RawConn, used int) (n int, err error) {
	clear(f.o.Inflight.buffer()[:used])
	waitErr := events.Read(func(uintptr) bool {
		n, err = sys.Read(f.o.Group, f.window())
		return !errors.Is(err, syscall.EAGAIN)
	})
	return n, errors.Join(waitErr, err)
}

// waitForRoom waits until another event may be taken, or it is clear that
// waiting does not help; false when ctx has ended.
func (f *FrontEnd) waitForRoom(ctx context.Context) bool {
	if f.room() > 0 {
		f.crowded = false
		return true
	}
	var stalled *time.Ticker
	for f.room() <= 0 && !f.crowded {
		f.starved.Store(true)
		if f.room() > 0 {
			break // an answer came in between
		}
		if stalled == nil {
			stalled = time.NewTicker(stall)
			defer stalled.Stop()
		}
		select {
		case <-f.answered:
		case <-stalled.C:
			f.crowded = f.raised.Load()
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// room is how many more events may be taken. However many objects there are,
// there is one for events.
func (f *FrontEnd) room() int {
	return max(f.o.Descriptors-PerObject*int(f.objects.Load()), 1) - int(f.open.Load())
}

// window is the part of the shared buffer that may be read into now, so that no
// more events are taken than there are descriptors for. There is room for one.
func (f *FrontEnd) window() []byte {
	buf := f.o.Inflight.buffer()
	return buf[:min(len(buf), max(f.room(), 1)*sys.FanotifyEventSize)]
}
