package daemon

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/sys"
)

// A worker is asked to end by its keeper, with SIGTERM, or by `lacuna stop`. Of the
// second the keeper knows nothing: what stands for it is a descriptor that it holds,
// so that a worker that dies meanwhile is followed by one that goes on stopping.

// ExitStopped is the status of a worker that systemd is not to start again because
// `lacuna stop` has ended it: packaging/lacuna.service names it.
const ExitStopped = 100

// ending is what a worker knows of its end.
type ending struct {
	asked  chan struct{} // capacity 1: `lacuna stop` was called
	looked chan struct{} // closed once a stop has looked who uses what
	once   sync.Once     // closes looked

	mu   sync.Mutex // guards held, and is never held with another lock wanted
	held bool       // the keeper holds fdStop
}

// Stop has the instance end as SIGTERM does. It implements control.Life.
func (w *worker) Stop(ctx context.Context) (control.StopReply, error) {
	if err := w.rememberStop(); err != nil {
		return control.StopReply{}, err
	}
	select {
	case w.end.asked <- struct{}{}:
	default: // it was asked before
	}
	select {
	case <-w.end.looked:
	case <-ctx.Done():
		return control.StopReply{}, ctx.Err()
	}
	return control.StopReply{Waits: w.waitsFor()}, nil
}

// rememberStop has the next worker go on with the stop.
func (w *worker) rememberStop() error {
	w.end.mu.Lock()
	defer w.end.mu.Unlock()
	if w.end.held {
		return nil
	}
	fd, err := sys.Memfd("lacuna-stop", 0)
	if err != nil {
		return err
	}
	if err := w.hold(fdStop, fd); err != nil {
		return err
	}
	w.end.held = true
	return nil
}

// forgetStop has it not do so. It tells whether there was a stop to remember.
func (w *worker) forgetStop() (bool, error) {
	w.end.mu.Lock()
	defer w.end.mu.Unlock()
	if !w.end.held {
		return false, nil
	}
	w.end.held = false
	return true, w.unhold(fdStop)
}

// finish undoes everything and tells the keeper that this is the end. It returns the
// status to end with.
func (w *worker) finish(ctx context.Context) (int, error) {
	w.log.Info("stopping")
	w.leaves = true
	lost := w.client.IsLost()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !lost && !w.s.Systemd { // or no keeper denies after us: stay until the last reader has closed
		go w.untilAskedAgain(ctx, cancel)
	}
	err := w.stop(ctx, 0, w.looked())
	err = errors.Join(err, w.socket.Remove(), w.server.Close())
	if lost {
		return exitOf(err), err
	}
	if err == nil {
		// Nothing needs the group any more: the keeper need not look.
		for _, name := range []string{fdGroup, fdInflight, fdControl, fdLock} {
			err = errors.Join(err, w.client.Remove(name))
		}
	}
	err = errors.Join(err, w.client.Stopping())
	commanded, stopErr := w.forgetStop()
	err = errors.Join(err, stopErr)
	if commanded && w.s.Systemd { // it has waited until nothing stood, whatever else went wrong
		w.exit = ExitStopped
		return 0, err
	}
	return exitOf(err), err
}

// moreTime is what a stop that waits asks the keeper for, each moreOften.
const (
	moreTime  = 30 * time.Second
	moreOften = time.Second
)

// looked is called whenever a stop has looked who uses what.
func (w *worker) looked() func() {
	var last time.Time
	return func() {
		w.end.once.Do(func() { close(w.end.looked) })
		if now := time.Now(); !w.s.Systemd && now.Sub(last) >= moreOften {
			last = now
			if err := w.client.Extend(moreTime); err != nil {
				w.log.Debug("asking the keeper for more time", "err", err)
			}
		}
	}
}

// untilAskedAgain has the stop wait for nobody once a second signal asks for it.
func (w *worker) untilAskedAgain(ctx context.Context, cancel func()) {
	for {
		select {
		case sig := <-w.signals:
			if w.isMeant(sig) {
				cancel()
			}
		case <-ctx.Done():
			return
		}
	}
}

// isMeant tells whether sig asks this process to stop. A terminal sends SIGINT and
// SIGQUIT to the keeper as well, which then asks with SIGTERM: counted here they
// would be asking twice.
func (w *worker) isMeant(sig os.Signal) bool {
	switch sig {
	case syscall.SIGTERM:
		return true
	case syscall.SIGINT, syscall.SIGQUIT:
		return w.s.Systemd || w.client.IsLost()
	}
	return false
}

func exitOf(err error) int {
	if err != nil {
		return 1
	}
	return 0
}
