package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// RunWorker is a worker's life: it takes over what the keeper holds, serves
// until it is told to stop (SIGTERM, SIGINT: everything is undone) or to hand
// over (SIGUSR1 from our keeper, SIGHUP under systemd: nothing is), and returns
// the exit status. It must run before the process opens descriptors that it
// will close again. env is the environment for a keeper that it has to start.
func RunWorker(s Settings, from keeper.Environment, env []string, log *slog.Logger) (int, error) {
	client, held, err := keeper.Inherit(from)
	if err != nil {
		return 1, err
	}
	i := &Instance{
		s: s, log: log, client: client, held: held, started: time.Now(),
		pushed: make(map[string][]*sys.FD), files: make(map[string]*attachedFile),
		objects: make(map[ondemand.ObjectID]*servedObject), bound: make(map[string]*boundDir),
		covered: make(map[string]record),
		mounts:  make(map[string]*mountedImage), loops: make(map[string]bool),
	}
	// Signals are taken from the first moment on, or one would kill us.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGHUP)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := &worker{Instance: i, signals: signals, env: env, failed: make(chan error, 2)}
	w.end.asked, w.end.looked = make(chan struct{}, 1), make(chan struct{})
	w.end.held = len(held[fdStop]) > 0
	i.stopping = w.end.held
	legacy, err := i.open(ctx)
	if err != nil {
		return 1, errors.Join(err, w.leaveKept(), i.close(), client.Close())
	}
	if legacy != nil {
		if n := legacy.Len(); n > 0 {
			log.Info("going on with reads of the worker before", "reads", n)
		}
		if err := i.front.Adopt(legacy); err != nil {
			return 1, errors.Join(err, w.leaveKept())
		}
	}
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	served := make(chan error, 1)
	go func() {
		err := i.front.Serve(serving)
		served <- err
		if err != nil {
			w.failed <- fmt.Errorf("serve reads: %w", err)
		}
	}()
	status, err := w.run(ctx)
	if status != 0 || w.handOver {
		// The successor goes on: nothing is answered or closed any more.
		return status, errors.Join(err, w.leaveKept())
	}
	err = errors.Join(err, i.table.Close())
	stopServing()
	err = errors.Join(err, <-served)
	i.front.Drain()
	return w.exit, errors.Join(err, i.close(), client.Close())
}

// worker is an Instance with what moves it.
type worker struct {
	*Instance
	signals  chan os.Signal
	env      []string
	failed   chan error
	handOver bool
	leaves   bool // for good: what it leaves is only to be undone
	end      ending
	exit     int // with which the process ends where all is well
	server   *control.Server
	socket   control.Name
}

// run serves until the end, and returns with everything undone, or with
// handOver set, or with a status other than 0.
func (w *worker) run(ctx context.Context) (int, error) {
	stopping := w.end.held // others may call Stop from listen on
	if err := w.listen(); err != nil {
		return 1, err
	}
	if stopping { // the worker before was at it
		if err := w.client.Ready(); err != nil {
			return 1, err
		}
		return w.finish(ctx)
	}
	asked, err := w.beginUnlessAsked(ctx)
	if err != nil {
		// The first start failed: what it made is undone again.
		w.leaves = true
		looked := func() { w.end.once.Do(func() { close(w.end.looked) }) } // who has called Stop waits for it
		return 1, errors.Join(err, w.stop(ctx, busyWait, looked), w.socket.Remove(), w.server.Close())
	}
	if err := w.client.Ready(); err != nil {
		return 1, err
	}
	if asked {
		return w.finish(ctx)
	}
	w.log.Info("ready", "root", w.root.Dir(), "keeper", w.client.KeeperPID())
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
			if err := w.root.Beat(); err != nil {
				w.report("touching the lock", err)
			}
			w.checkLoops()
			w.forgetLeft()
			if w.s.Foreground && w.servesNothing() {
				return w.finish(ctx) // all was detached by another command
			}
		case <-w.end.asked:
			return w.finish(ctx)
		case err := <-w.failed:
			return 1, err // the keeper starts the next one
		case <-w.client.Lost():
			if w.s.Foreground {
				w.log.Warn("the keeper has died: stopping")
				return w.finish(ctx)
			}
			w.newKeeper(ctx)
		case sig := <-w.signals:
			if sig == syscall.SIGUSR1 || sig == syscall.SIGHUP && w.s.Systemd {
				w.log.Info("handing over")
				w.handOver = true
				w.checkpointAll()
				return 0, nil
			}
			if w.isMeant(sig) {
				return w.finish(ctx)
			}
		}
	}
}

// beginUnlessAsked begins, and gives up once the instance is asked to end: a layer may
// take minutes to download. asked: it was, and all had begun by then.
func (w *worker) beginUnlessAsked(ctx context.Context) (asked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := make(chan error, 1)
	go func() { begun <- w.begin(ctx) }()
	var later []os.Signal // what else is asked for is due once it has begun
	for {
		select {
		case err := <-begun:
			for _, sig := range later {
				select {
				case w.signals <- sig:
				default: // as many are waiting already
				}
			}
			if err != nil && asked {
				err = errors.Join(context.Canceled, err)
			}
			return asked, err
		case <-w.end.asked:
			asked = true
		case sig := <-w.signals:
			if w.isMeant(sig) {
				asked = true
			} else if !slices.Contains(later, sig) {
				later = append(later, sig)
			}
		}
		if asked {
			cancel()
		}
	}
}

func (w *worker) servesNothing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.files) == 0 && len(w.bound) == 0 && len(w.mounts) == 0
}

// checkpointAll makes presence durable, so that the next worker need not fetch again.
func (w *worker) checkpointAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.objects {
		if err := o.cached.Checkpoint(); err != nil {
			w.log.Error("checkpoint", "object", o.cached.ID().Short(), "err", err)
		}
	}
}

// listen opens the control socket, or takes it over.
func (w *worker) listen() error {
	var l *net.UnixListener
	if fds := w.held[fdControl]; len(fds) > 0 {
		taken, err := fromHeld(fds[0], net.FileListener)
		if err != nil {
			return fmt.Errorf("take over the control socket: %w", err)
		}
		var ok bool
		if l, ok = taken.(*net.UnixListener); !ok {
			return errors.Join(errors.New("take over the control socket: it is another kind of socket"), taken.Close())
		}
		l.SetUnlinkOnClose(false) // who has been handed it removes it, if it still is the same
	} else {
		made, err := control.Listen(w.s.Config.Socket)
		if err != nil {
			return err
		}
		fd, err := dupListener(made)
		if err != nil {
			return errors.Join(err, made.Close())
		}
		if err := w.hold(fdControl, fd); err != nil {
			return errors.Join(err, made.Close())
		}
		l = made
	}
	var err error
	if w.socket, err = control.NameOf(w.s.Config.Socket, l); err != nil {
		w.report("looking at the control socket", err) // its file is left at the end
	}
	w.server = control.NewServer(explained{w, w.foregroundNote})
	go func() {
		if err := w.server.Serve(l); err != nil {
			w.failed <- err
		}
	}()
	return nil
}

// foregroundNote tells whoever lets a foreground command serve more.
func (w *worker) foregroundNote() string {
	if !w.s.Foreground {
		return ""
	}
	return fmt.Sprintf("a command in the foreground, process %d, serves it, and takes it away when it ends", w.client.KeeperPID())
}

func dupListener(l *net.UnixListener) (*sys.FD, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd *sys.FD
	var inner error
	err = raw.Control(func(n uintptr) { fd, inner = sys.DupAbove(int(n), 3) })
	return fd, errors.Join(err, inner)
}

// begin does what a foreground instance was started for, unless the worker
// before has done it.
func (w *worker) begin(ctx context.Context) error {
	if q := w.s.Attach; q != nil {
		path, err := canonical("attach", q.File)
		if err != nil {
			return err
		}
		if !w.has(path) {
			reply, err := w.Attach(ctx, *q)
			if err != nil {
				return err
			}
			for _, note := range reply.Notes {
				w.log.Warn(note)
			}
		}
	}
	if q := w.s.Mount; q != nil && w.servesNothing() {
		reply, err := w.Mount(ctx, *q)
		if err != nil {
			return err
		}
		for _, note := range reply.Notes {
			w.log.Warn(note)
		}
	}
	if q := w.s.Bind; q != nil && w.servesNothing() {
		reply, err := w.Bind(ctx, *q)
		if err != nil {
			return err
		}
		for _, note := range reply.Notes {
			w.log.Warn(note)
		}
	}
	return nil
}

func (w *worker) has(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.files[path] != nil
}
