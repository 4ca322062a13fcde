// Package fanotify is the front end over pre-content events (FAN_PRE_ACCESS,
// Linux 6.14): the kernel stops a read of a marked file and asks; the front end
// answers at once where the range is present, and otherwise when the request
// table says so.
//
// Each event is answered exactly once, whatever happens. The rules against
// waiting for ourselves: one thread reads events and never fills; events of
// this process are let through at once; the answer is written before the event's
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
	// Descriptors is how many events may be unanswered at once; each holds
	// a descriptor. More readers wait in the kernel's queue.
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
	starved atomic.Bool  // the reading loop waits for open to fall
	answers sync.WaitGroup
	adopted bool
}

// attachment is one marked file.
type attachment struct {
	object ondemand.Object
	file   *sys.FD // O_PATH: names the inode for the marks
	inode  sys.Inode
	exempt func(pid int) bool
	marked atomic.Bool
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
func New(o Options) (*FrontEnd, error) {
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return &FrontEnd{
		o: o, pid: os.Getpid(), answered: make(chan struct{}, 1),
		attached: make(map[sys.Inode]*attachment),
	}, nil
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
// Events of processes for which exempt says so are let through at once: the one
// who fills the file by its path would wait for itself. exempt may be nil.
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
	if object.Complete() {
		return nil
	}
	if err := sys.FanotifyMark(f.o.Group, file); err != nil {
		delete(f.attached, inode)
		return errors.Join(fmt.Errorf("attach %s: %w", path, err), file.Close())
	}
	a.marked.Store(true)
	return nil
}

// Detach takes the object out of service: pending reads of it end with
// ErrDetached, and it returns when they have been answered. The file must not
// be reachable for readers any more, unless it is complete: holes of a file
// without a mark read as zeros.
func (f *FrontEnd) Detach(id ondemand.ObjectID) error {
	a := f.find(id)
	if a == nil {
		return fmt.Errorf("detach %s: %w", id.Short(), ErrNotAttached)
	}
	f.o.Table.Flush(id, fmt.Errorf("read %s: %w", id.Short(), ondemand.ErrDetached))
	f.mu.Lock()
	err := f.unmarkLocked(a)
	delete(f.attached, a.inode)
	f.mu.Unlock()
	// A read that had been looked up before the deletion may have entered
	// the table after the flush.
	f.o.Table.Flush(id, fmt.Errorf("read %s: %w", id.Short(), ondemand.ErrDetached))
	a.events.Wait()
	return errors.Join(err, a.file.Close())
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
// so. Nothing is filled on its goroutine.
//
// It waits in the runtime's poller rather than on a thread of its own: what it
// starts for a miss then runs on the same processor the moment it waits again,
// where another thread would have to be woken and to steal it first.
func (f *FrontEnd) Serve(ctx context.Context) (err error) {
	dup, err := f.o.Group.Dup()
	if err != nil {
		return err
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
		f.batch(f.o.Inflight.buffer()[:n])
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

// waitForRoom waits until another event may be taken; false when ctx has ended.
func (f *FrontEnd) waitForRoom(ctx context.Context) bool {
	for f.room() <= 0 {
		f.starved.Store(true)
		if f.room() > 0 {
			break // an answer came in between
		}
		select {
		case <-f.answered:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// room is how many more events may be taken.
func (f *FrontEnd) room() int { return f.o.Descriptors - int(f.open.Load()) }

// window is the part of the shared buffer that may be read into now, so that no
// more events are taken than there are descriptors for. There is room for one.
func (f *FrontEnd) window() []byte {
	buf := f.o.Inflight.buffer()
	return buf[:min(len(buf), max(f.room(), 1)*sys.FanotifyEventSize)]
}

// batch handles the events of one read. One that is malformed is denied, and the
// others are handled as if it were not there.
func (f *FrontEnd) batch(buf []byte) {
	for len(buf) > 0 {
		var ev sys.FanotifyEvent
		var err error
		ev, buf, err = sys.ParseFanotifyEvent(buf)
		switch {
		case err != nil:
			f.o.OnError(err)
			if ev.FD >= 0 {
				f.take(ev.FD).answer(err)
			}
		case ev.Mask&sys.FanQOverflow != 0:
			// Cannot be: the queue has no limit. If it is, readers were let through.
			f.o.OnError(errors.New("the kernel dropped events: readers may have seen zeros"))
		case ev.FD < 0:
			// The kernel could not open the descriptor and has denied the read.
			f.o.OnError(fmt.Errorf("event without a descriptor, denied by the kernel: %w", syscall.Errno(-ev.FD)))
		default:
			f.handle(ev)
		}
	}
}

// handle answers one event, or enters it into the table, which will. A panic denies.
func (f *FrontEnd) handle(ev sys.FanotifyEvent) {
	e := f.take(ev.FD)
	defer func() {
		if p := recover(); p != nil {
			e.answer(fmt.Errorf("fanotify: internal error: %v", p))
		}
	}()
	if ev.PID == f.pid {
		e.answer(nil) // our own fill, through a descriptor opened after the mark
		return
	}
	inode, err := sys.InodeOf(ev.FD)
	if err != nil {
		e.answer(err)
		return
	}
	a := f.lookUp(inode, e)
	if a == nil {
		e.answer(ErrNotAttached)
		return
	}
	r := extent(ev, a.object.Size())
	if a.object.Has(r) {
		a.hits.Add(1)
		e.answer(nil)
		f.settle(a)
		return
	}
	if a.exempt != nil && a.exempt(ev.PID) {
		e.answer(nil)
		return
	}
	a.misses.Add(1)
	if ev.FD >= f.o.Inflight.Slots() {
		e.answer(syscall.EAGAIN) // beyond what a successor could be told of
		return
	}
	f.o.Inflight.enter(taken{number: ev.FD, pid: ev.PID, inode: inode, event: ev, since: sys.Monotonic()})
	e.entered = true
	f.o.Table.Submit(a.object, r, 0, e.answer)
}

// lookUp finds the attachment and ties the event to it, so that Detach waits.
func (f *FrontEnd) lookUp(inode sys.Inode, e *openEvent) *attachment {
	f.mu.RLock()
	defer f.mu.RUnlock()
	a := f.attached[inode]
	if a != nil {
		e.tie(a)
	}
	return a
}

// settle unmarks the object once it is complete.
func (f *FrontEnd) settle(a *attachment) {
	if a.marked.Load() && a.object.Complete() {
		if err := f.unmark(a); err != nil {
			f.o.OnError(err)
		}
	}
}

// openEvent is an event that must be answered; its answer works once.
type openEvent struct {
	f        *FrontEnd
	number   int
	entered  bool // it stands in the Inflight table
	keepOpen bool // number belongs to something else of this process as well
	ties     []*attachment
	done     atomic.Bool
}

// tie is called under mu, before anything can answer the event.
func (e *openEvent) tie(a *attachment) {
	a.events.Add(1)
	e.ties = append(e.ties, a)
}

func (f *FrontEnd) take(number int) *openEvent {
	f.open.Add(1)
	f.answers.Add(1)
	return &openEvent{f: f, number: number}
}

// answer lets the reader go on, or denies it with the errno of err. Only the
// first call does anything.
func (e *openEvent) answer(err error) {
	if e.done.Swap(true) {
		return
	}
	f := e.f
	defer f.answers.Done()
	errno := ondemand.Errno(err)
	_, failed := respondIfOpen(f.o.Group, e.number, errno) // not open: the reader was killed
	if failed != nil && errno != syscall.EIO {
		_, failed = respondIfOpen(f.o.Group, e.number, syscall.EIO)
	}
	if e.entered {
		f.o.Inflight.leave(e.number)
	}
	if !e.keepOpen {
		failed = errors.Join(failed, sys.NewFD(e.number).Close())
	}
	if failed != nil {
		f.o.OnError(failed)
	}
	for _, a := range e.ties {
		a.events.Done()
	}
	f.open.Add(-1)
	if f.starved.Swap(false) {
		select {
		case f.answered <- struct{}{}:
		default: // it has one
		}
	}
}

// Drain returns when every event that was taken has been answered. Serve must
// have returned, and the table must be closed.
func (f *FrontEnd) Drain() { f.answers.Wait() }
