package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// supervisor runs workers, one after the other.
type supervisor struct {
	opt      Options
	inbox    *inbox
	worker   *worker // nil while none runs
	handOver bool    // the worker is to be replaced first
	ends     backoff
	signals  chan os.Signal
}

// WorkerError says that the worker has ended with a status other than 0. The
// worker has had standard error to say why.
type WorkerError struct {
	PID, Status int
}

// Error is for the log.
func (e *WorkerError) Error() string {
	return fmt.Sprintf("worker %d ended with status %d", e.PID, e.Status)
}

// ending is why the keeper ends.
type ending struct {
	status int
	err    error
	clean  bool // the worker has undone what it did
}

// newSupervisor begins, or goes on from Options.State.
func newSupervisor(o Options) (*supervisor, error) {
	s := &supervisor{opt: o, signals: make(chan os.Signal, 16)}
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	err := s.begin()
	if err != nil {
		signal.Stop(s.signals)
		return nil, err
	}
	go s.inbox.read()
	return s, nil
}

func (s *supervisor) begin() error {
	if s.opt.State == "" {
		address, socket, err := listen(s.opt.Address)
		if err != nil {
			return err
		}
		if s.inbox, err = newInbox(&s.opt, address, socket); err != nil {
			return errors.Join(err, socket.Close())
		}
		return nil
	}
	st, err := readState(s.opt.State)
	if err != nil {
		return err
	}
	if s.inbox, err = newInbox(&s.opt, st.Address, sys.NewFD(st.Socket)); err != nil {
		return err
	}
	for _, h := range st.Held {
		s.inbox.held.add(h.Name, sys.NewFD(h.FD))
	}
	s.inbox.life = life{ready: st.Ready, stopping: st.Stopping, everReady: st.EverReady, deaths: st.Deaths}
	if st.Worker != 0 {
		s.inbox.pid = st.Worker
		s.worker = watchWorker(st.Worker, sys.NewFD(st.Process), st.Child, s.opt.clock.now())
	}
	s.handOver = st.HandOver
	return nil
}

// close frees everything. No worker runs.
func (s *supervisor) close() error {
	signal.Stop(s.signals)
	return s.inbox.close()
}

func (s *supervisor) run(ctx context.Context) (int, error) {
	if s.handOver {
		s.opt.OnEvent(Event{What: Upgraded})
		if end := s.replaceWorker(ctx); end != nil {
			return s.finish(*end)
		}
	}
	for {
		last, end := s.attend(ctx)
		if end == nil {
			end = s.pause(ctx, s.ends.next(last.lived, last.ready))
		}
		if end != nil {
			return s.finish(*end)
		}
	}
}

// lifetime is how long a worker has lived and whether it had become ready.
type lifetime struct {
	lived time.Duration
	ready bool
}

// attend starts a worker where none runs and waits for its end. It returns the
// worker's lifetime, or that the keeper has to end.
func (s *supervisor) attend(ctx context.Context) (lifetime, *ending) {
	if s.worker == nil {
		if ctx.Err() != nil {
			return lifetime{}, &ending{}
		}
		if err := s.start(); err != nil {
			s.opt.OnEvent(Event{What: StartFailed, Err: err})
			if !s.inbox.everReady() {
				return lifetime{}, &ending{status: 1, err: err}
			}
			return lifetime{}, nil
		}
	}
	for {
		select {
		case <-s.worker.dead:
			return s.ended()
		case sig := <-s.signals:
			if sig != syscall.SIGHUP || s.opt.HungUp() {
				return lifetime{}, s.stop()
			}
			s.opt.OnEvent(Event{What: UpgradeRefused, Err: s.reexec(ctx)})
		case <-ctx.Done():
			return lifetime{}, s.stop()
		}
	}
}

func (s *supervisor) start() error {
	s.inbox.mu.Lock()
	w, err := s.inbox.startLocked()
	s.inbox.mu.Unlock()
	if err != nil {
		return err
	}
	s.worker = w
	s.opt.OnEvent(Event{What: WorkerStarted, PID: w.pid})
	return nil
}

// ended decides what follows from the worker's end.
func (s *supervisor) ended() (lifetime, *ending) {
	w, life, status := s.clear()
	err := &WorkerError{PID: w.pid, Status: status}
	switch {
	case life.stopping && status == 0:
		return lifetime{}, &ending{clean: true}
	case life.stopping, !life.everReady && status != 0:
		return lifetime{}, &ending{status: status, err: err}
	case !life.everReady:
		// It went without a word, and nothing is known to be undone.
		return lifetime{}, &ending{}
	}
	now := s.opt.clock.now()
	s.inbox.mu.Lock()
	s.inbox.life.deaths = life.deaths.another(now)
	s.inbox.mu.Unlock()
	return lifetime{now.Sub(w.started), life.ready}, nil
}

// clear takes leave of the dead worker.
func (s *supervisor) clear() (*worker, life, int) {
	w := s.worker
	<-w.dead
	s.worker = nil
	life := s.inbox.workerGone()
	status, text := w.outcome(life.stopping)
	err := errors.Join(w.err, w.process.Close())
	s.opt.OnEvent(Event{What: WorkerEnded, PID: w.pid, Text: text, Err: err})
	return w, life, status
}

// stop ends the worker for good.
func (s *supervisor) stop() *ending {
	if s.worker == nil {
		return &ending{}
	}
	killed := s.leave(syscall.SIGTERM, s.opt.StopTimeout, nil)
	w, _, status := s.clear()
	switch {
	case killed:
		err := fmt.Errorf("worker %d did not stop within %v and was killed", w.pid, s.opt.StopTimeout)
		return &ending{status: 1, err: err}
	case !w.known, w.status.Signaled() && w.status.Signal() == syscall.SIGTERM:
		// It went when it was asked to, maybe before it listened.
		return &ending{}
	case status != 0:
		return &ending{status: status, err: &WorkerError{PID: w.pid, Status: status}}
	}
	return &ending{clean: true}
}

// handOverAgain is how often a worker is asked to hand over until it does.
const handOverAgain = 200 * time.Millisecond

// leave sends sig to the worker and waits until it has ended, killing it after
// limit, which it reports. A worker that stops may ask for more time. A SIGTERM that
// comes meanwhile ends the waiting where interrupted says so; where it is nil the
// worker is sent sig again.
func (s *supervisor) leave(sig syscall.Signal, limit time.Duration, interrupted func() bool) (killed bool) {
	w := s.worker
	late, cancel := s.opt.clock.after(limit)
	defer func() { cancel() }()
	err := w.signal(sig)
	var again <-chan time.Time
	var extended <-chan time.Duration
	if sig == syscall.SIGTERM {
		extended = s.inbox.extended
	}
	if sig == syscall.SIGUSR1 { // a worker that has just started does not listen yet, and drops it
		ticker := time.NewTicker(handOverAgain)
		defer ticker.Stop()
		again = ticker.C
	}
	for err == nil {
		select {
		case <-w.dead:
			return false
		case <-again:
			err = w.signal(sig)
			continue
		case limit := <-extended:
			cancel()
			late, cancel = s.opt.clock.after(limit)
			continue
		case got := <-s.signals:
			if got == syscall.SIGHUP {
				defer s.requeue(got) // due once the worker is gone
			} else if interrupted == nil {
				err = w.signal(sig) // asked again, so it is asked again
			} else if interrupted() {
				return false
			}
			continue
		case <-late:
		}
		break
	}
	killErr := w.signal(syscall.SIGKILL)
	s.opt.OnEvent(Event{What: Killed, PID: w.pid, Err: errors.Join(err, killErr)})
	<-w.dead
	return true
}

func (s *supervisor) requeue(sig os.Signal) {
	select {
	case s.signals <- sig:
	default: // as many are waiting already
	}
}

// replaceWorker has the worker leave without undoing anything. The next one
// starts only after that; see the package comment.
func (s *supervisor) replaceWorker(ctx context.Context) *ending {
	s.handOver = false
	if s.worker == nil {
		return nil
	}
	stopped := false
	s.leave(syscall.SIGUSR1, s.opt.HandOverTimeout, func() bool { stopped = true; return true })
	if stopped || ctx.Err() != nil {
		end := s.stop()
		end.clean = false // it has been told to leave things as they are
		return end
	}
	w, life, status := s.clear()
	if life.stopping {
		// It was about to end for good when the upgrade came.
		if status == 0 {
			return &ending{clean: true}
		}
		return &ending{status: status, err: &WorkerError{PID: w.pid, Status: status}}
	}
	s.opt.OnEvent(Event{What: HandedOver, PID: w.pid})
	return nil
}

// pause lets the time before the next start pass, denying requests when it is long.
func (s *supervisor) pause(ctx context.Context, wait time.Duration) *ending {
	if wait > 0 {
		s.opt.OnEvent(Event{What: Waiting, Wait: wait})
	}
	over, cancel := s.opt.clock.after(wait)
	defer cancel()
	attended := func() {}
	if wait >= unattendedFrom {
		attended = s.unattended()
	}
	defer func() { attended() }()
	select {
	case <-over:
	case <-ctx.Done():
		return &ending{}
	case sig := <-s.signals:
		if sig != syscall.SIGHUP || s.opt.HungUp() {
			return &ending{}
		}
		attended()
		attended = func() {}
		// Where it is refused the next start is due at once: somebody has
		// just changed something.
		s.opt.OnEvent(Event{What: UpgradeRefused, Err: s.reexec(ctx)})
	}
	return nil
}

// unattended starts Options.Unattended and returns what ends it.
func (s *supervisor) unattended() (attended func()) {
	if s.opt.Unattended == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	held := s.inbox.snapshot()
	go func() {
		defer close(done)
		err := guard(func() error { return s.opt.Unattended(ctx, held) })
		if err != nil && !errors.Is(err, context.Canceled) {
			s.opt.OnEvent(Event{What: UnattendedError, Err: err})
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// finish undoes what the worker has left. Descriptors are closed after it.
func (s *supervisor) finish(end ending) (int, error) {
	held := s.inbox.snapshot()
	// Where no worker was ever ready and nothing is held, nothing is ours.
	nothing := len(held) == 0 && (end.clean || !s.inbox.everReady())
	if s.opt.LastStop == nil || nothing {
		return end.status, end.err
	}
	// Whoever reads must not keep what is to be unmounted busy.
	attended := s.unattended()
	defer attended()
	for {
		err := guard(func() error { return s.opt.LastStop(held) })
		if err == nil {
			return end.status, end.err
		}
		s.opt.OnEvent(Event{What: LastStopError, Err: err})
		again, _ := s.opt.clock.after(time.Second)
		<-again
	}
}

// guard turns a panic into an error: if the keeper dies, so does what it holds.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("keeper: internal error: %v", p)
		}
	}()
	return f()
}
