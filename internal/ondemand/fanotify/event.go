package fanotify

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// batch handles the events of one read. One that is malformed is denied, and the
// others are handled as if it were not there; an error says that it is not known
// where the next one begins.
func (f *FrontEnd) batch(buf []byte) error {
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
			if buf == nil {
				return fmt.Errorf("read events: %w", err)
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
	return nil
}

// handle answers one event, or enters it into the table, which will. A panic denies.
func (f *FrontEnd) handle(ev sys.FanotifyEvent) {
	e := f.take(ev.FD)
	defer func() {
		if p := recover(); p != nil {
			e.answer(fmt.Errorf("fanotify: internal error: %v", p))
		}
	}()
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
	if ev.PID == f.pid {
		e.answer(own(a.object, r))
		return
	}
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
	f.miss(a, ev, e, inode, r)
}

// own decides an access of this process. It may be a fill, through a descriptor
// opened after the mark, and then must not wait. A read of what is missing, by way
// of whatever mount, would wait for itself, and is refused.
func own(o ondemand.Object, r ondemand.Range) error {
	h, ok := o.(ondemand.FilledHere)
	if !ok || len(o.Missing(r)) == 0 || h.Filling(r) {
		return nil
	}
	return fmt.Errorf("read %s %v: %w", o.ID().Short(), r, ErrOwnRead)
}

// ErrOwnRead: the process that serves a file reads what is missing of it.
var ErrOwnRead = errors.New("the instance reads what it serves itself")

// miss enters the event into the in-flight table and the table of requests.
func (f *FrontEnd) miss(a *attachment, ev sys.FanotifyEvent, e *openEvent, inode sys.Inode, r ondemand.Range) {
	a.misses.Add(1)
	if f.crowded && f.room() < 0 || ev.FD >= f.o.Inflight.Slots() {
		e.answer(syscall.EAGAIN) // no room, or beyond what a successor could be told of
		return
	}
	f.o.Inflight.enter(taken{number: ev.FD, pid: ev.PID, inode: inode, event: ev, since: sys.Monotonic()})
	e.entered = true
	f.submit(a, r, readerOf(ev.PID, 0), e.answer)
}

// readerOf tells the table of the process that sleeps. It may be killed (kernel:
// fs/notify/fanotify/fanotify.c, fanotify_get_response waits killably), and nobody
// is told. One in a pid namespace that is not below ours has the number 0 (pid_vnr)
// and may be there for all that is known; so may one whose number another has now,
// and a zombie, which other threads of it may outlive.
func readerOf(pid int, waited time.Duration) ondemand.Reader {
	r := ondemand.Reader{Waited: waited}
	if pid > 0 {
		r.Alive = func() bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
	}
	return r
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
	errno := ondemand.Errno(err)
	if wait := e.f.holdBack(e); wait > 0 {
		e.f.later(e, errno, wait)
		return
	}
	e.send(errno)
}

// send writes the answer and lets go of the event.
func (e *openEvent) send(errno syscall.Errno) {
	f := e.f
	defer f.answers.Done()
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
