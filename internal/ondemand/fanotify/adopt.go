package fanotify

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/sys"
)

// adoptAll is up to how many attached objects Adopt fills the range of an event
// whose file it does not know in all of them; with more it denies, and also where
// a file is marked that is not attached here: the event may be for that one.
const adoptAll = 64

// Legacy are the events that a process which died had read and not answered.
// Their numbers are occupied in this process: a new event cannot get one of
// them, and with it the answer that is meant for the old one.
type Legacy struct {
	events []taken
	keep   map[int]bool // numbers that were in use here already
	held   int          // descriptors that Occupy opened
}

// Len is the number of events.
func (l *Legacy) Len() int { return len(l.events) }

// Occupy finds the events that are still open in group and occupies their
// numbers. It must run before this process opens descriptors that it will
// close again, and before anybody reads from group. inherited are descriptors
// that the process was started with; those that stand on a needed number move.
// Open events that the table does not explain are denied with EIO.
func Occupy(group *sys.FD, t *Inflight, inherited []*sys.FD) (*Legacy, error) {
	// The process before may have been allowed higher numbers than this one yet.
	if _, err := sys.SetFileLimit(uint64(t.Slots())); err != nil {
		return nil, fmt.Errorf("occupy event numbers: %w", err)
	}
	l := &Legacy{events: t.outstanding(), keep: make(map[int]bool)}
	known := make(map[int]bool)
	for _, e := range l.events {
		known[e.number] = true
	}
	for _, fd := range inherited {
		if !known[fd.Int()] {
			continue
		}
		if err := moveAway(fd, known); err != nil {
			return nil, err
		}
	}
	for _, e := range l.events {
		if sys.IsOpen(e.number) {
			l.keep[e.number] = true
			continue
		}
		// Any file keeps the number; the table's own is at hand.
		if err := sys.DupOnto(t.FD().Int(), e.number); err != nil {
			return nil, fmt.Errorf("occupy event number %d: %w", e.number, err)
		}
		l.held++
	}
	if err := denyOpen(group, t, known); err != nil {
		return nil, fmt.Errorf("deny unexplained events: %w", err)
	}
	return l, nil
}

// moveAway gives fd another number, outside known, and frees its old one.
func moveAway(fd *sys.FD, known map[int]bool) error {
	for lowest := 3; ; {
		moved, err := sys.DupAbove(fd.Int(), lowest)
		if err != nil {
			return fmt.Errorf("move descriptor %d: %w", fd.Int(), err)
		}
		if known[moved.Int()] {
			lowest = moved.Int() + 1
			if err := moved.Close(); err != nil {
				return err
			}
			continue
		}
		return fd.Replace(moved)
	}
}

// Adopt enters the events of a dead process into the table, to be filled and
// answered like any other. All objects must be attached; Serve must not run yet.
func (f *FrontEnd) Adopt(l *Legacy) error {
	if f.adopted {
		return errors.New("adopt: events were adopted before")
	}
	f.adopted = true
	f.raised.Store(true)
	// All stand in slots before the buffer, which Serve wipes, is used again.
	for _, ev := range l.events {
		f.o.Inflight.enter(ev)
	}
	guess, err := f.mayGuess()
	for _, ev := range l.events {
		e := f.take(ev.number)
		e.entered, e.keepOpen = true, l.keep[ev.number]
		f.adoptOne(ev, e, guess)
	}
	return err
}

// mayGuess tells whether an event whose file is not known must be for one of the
// attached files, and there are few enough to fill its range in all of them.
func (f *FrontEnd) mayGuess() (bool, error) {
	marks, err := sys.FanotifyMarks(f.o.Group)
	if err != nil {
		return false, fmt.Errorf("adopt: %w", err)
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, a := range f.attached {
		if a.marked.Load() {
			marks--
		}
	}
	return marks == 0 && len(f.attached) <= adoptAll, nil
}

func (f *FrontEnd) adoptOne(ev taken, e *openEvent, guess bool) {
	all := f.candidates(ev, e, guess)
	if len(all) == 0 {
		e.answer(fmt.Errorf("event %d of a dead process: %w", ev.number, ErrNotAttached))
		return
	}
	// Where the file is not known, the read may go on once each file that it
	// could be has the range. The first failure denies it.
	var left atomic.Int64
	left.Store(int64(len(all)))
	exempt := 0
	for _, a := range all {
		if a.exempt != nil && a.exempt(ev.pid) {
			exempt++
		}
	}
	switch exempt {
	case 0:
	case len(all):
		e.answer(nil)
		return
	default:
		// It fills one of the files and may be reading another: to wait is
		// a deadlock in the one case, to go on is a hole in the other.
		e.answer(fmt.Errorf("event %d of a dead process: %w", ev.number, ErrNotAttached))
		return
	}
	reader := readerOf(ev.pid, sys.Monotonic()-ev.since)
	for _, a := range all {
		f.submit(a, extent(ev.event, a.object.Size()), reader, func(err error) {
			if err != nil {
				e.answer(err)
			} else if left.Add(-1) == 0 {
				e.answer(nil)
			}
		})
	}
}

// candidates are the attachments that the event may be for, tied to it.
func (f *FrontEnd) candidates(ev taken, e *openEvent, guess bool) (all []*attachment) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if ev.inode != (sys.Inode{}) {
		if a := f.attached[ev.inode]; a != nil {
			all = append(all, a)
		}
	} else if guess {
		for _, a := range f.attached {
			all = append(all, a)
		}
	}
	for _, a := range all {
		e.tie(a)
	}
	return all
}
