package fanotify

import (
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// All readers of a group sleep on one wait queue, and each answer wakes them
// all (fs/notify/fanotify/fanotify_user.c, process_access_response: wake_up of
// access_waitq). One by one, n answers cost n*n/2 wakings: minutes for 10,000.
// A sleeper that was woken is off the queue until it has run, so answers in
// quick succession cost little more than one. So where many sleep, answers wait
// for each other, a time in proportion to what waking the sleepers takes. The
// thread that then sends them is a real-time one: the woken would preempt it
// after the first.
const (
	crowd       = 256 // sleepers up to which each answer goes out at once
	wakePerRead = 20 * time.Microsecond
	longestHold = 500 * time.Millisecond
)

// heldAnswer is an answer that waits for others.
type heldAnswer struct {
	event *openEvent
	errno syscall.Errno
}

// burst collects answers that go out together.
type burst struct {
	mu      sync.Mutex
	answers []heldAnswer
	told    sync.Once // that there is no real-time thread
}

// holdBack tells how long the answer to e may wait for others; 0: not at all.
func (f *FrontEnd) holdBack(e *openEvent) time.Duration {
	open := f.open.Load()
	if !e.entered || open <= crowd {
		return 0
	}
	return min(time.Duration(open)*wakePerRead, longestHold)
}

// later answers e together with others, within wait. Until then the event
// stands in the Inflight table, should this process die.
func (f *FrontEnd) later(e *openEvent, errno syscall.Errno, wait time.Duration) {
	f.burst.mu.Lock()
	defer f.burst.mu.Unlock()
	f.burst.answers = append(f.burst.answers, heldAnswer{e, errno})
	if len(f.burst.answers) == 1 {
		time.AfterFunc(wait, f.sendBurst)
	}
}

// sendBurst runs on a goroutine of its own, whose thread ends with it.
func (f *FrontEnd) sendBurst() {
	runtime.LockOSThread()
	if err := sys.RealtimeThread(); err != nil {
		f.burst.told.Do(func() { f.o.OnError(err) })
	}
	f.burst.mu.Lock()
	answers := f.burst.answers
	f.burst.answers = nil
	f.burst.mu.Unlock()
	for _, a := range answers {
		a.event.send(a.errno)
	}
}
