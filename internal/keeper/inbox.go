package keeper

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// inbox receives the worker's messages and holds what it pushes.
type inbox struct {
	opt     *Options
	address string
	socket  *sys.FD
	waker   *sys.Waker
	done    chan struct{} // closed when the reading goroutine has ended
	// extended has the time that the worker has last asked for; capacity 1.
	extended chan time.Duration

	mu   sync.Mutex
	pid  int // whose messages count; 0: nobody's
	held table
	buf  []byte
	life life
}

// life is what messages have told about workers.
type life struct {
	// ready and stopping are of the worker that runs now.
	ready, stopping bool
	// everReady: a worker of this keeper, or of one before it, was ready.
	everReady bool
	// deaths of workers, of this keeper's and of those before it.
	deaths Deaths
}

// newAddress is a random abstract socket name.
func newAddress() string { return "@lacuna-keeper-" + rand.Text() }

// listen binds the notify socket at address; empty: at a random name.
func listen(address string) (string, *sys.FD, error) {
	if address == "" {
		address = newAddress()
	}
	if !strings.HasPrefix(address, "@") {
		if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", nil, fmt.Errorf("replace the notify socket: %w", err)
		}
	}
	socket, err := sys.ListenDatagram(address)
	if err != nil {
		return "", nil, fmt.Errorf("notify socket: %w", err)
	}
	return address, socket, nil
}

// newInbox takes over socket. The caller starts read once it has set what is
// held and who the worker is.
func newInbox(o *Options, address string, socket *sys.FD) (*inbox, error) {
	waker, err := sys.NewWaker()
	if err != nil {
		return nil, err
	}
	in := &inbox{
		opt: o, address: address, socket: socket, waker: waker,
		done: make(chan struct{}), buf: make([]byte, maxMessage+1),
		extended: make(chan time.Duration, 1),
	}
	return in, nil
}

// read handles messages until the waker is woken.
func (in *inbox) read() {
	defer close(in.done)
	for {
		_, woken, err := sys.Poll(in.socket, in.waker)
		if err != nil {
			in.opt.OnEvent(Event{What: SocketFailed, Err: err})
			return
		}
		if woken {
			return
		}
		in.mu.Lock()
		in.drainLocked()
		in.mu.Unlock()
	}
}

// drainLocked handles every message that is queued.
func (in *inbox) drainLocked() {
	for {
		err := in.receiveLocked()
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil {
			in.opt.OnEvent(Event{What: Refused, PID: in.pid, Err: err})
		}
	}
}

func (in *inbox) receiveLocked() error {
	sender, err := sys.PeekSender(in.socket)
	if err != nil {
		return err
	}
	if in.pid == 0 || sender != in.pid {
		in.opt.OnEvent(Event{What: Refused, PID: sender, Err: errors.New("the sender is not the worker")})
		return sys.DropDatagram(in.socket)
	}
	d, err := sys.ReceiveDatagram(in.socket, in.buf)
	if err != nil {
		return errors.Join(err, closeAll(d.FDs))
	}
	if d.Truncated {
		err := fmt.Errorf("%w: it was cut off, or this process has too many open files", ErrBadMessage)
		return errors.Join(err, closeAll(d.FDs))
	}
	m, err := parseMessage(d.Bytes)
	if err != nil {
		return errors.Join(err, closeAll(d.FDs))
	}
	return in.handleLocked(m, d.FDs)
}

// handleLocked does what m asks. It owns fds.
func (in *inbox) handleLocked(m message, fds []*sys.FD) error {
	var errs []error
	switch {
	case m.push:
		errs = append(errs, in.pushLocked(m.name, fds))
		fds = nil
	case m.remove:
		fds = append(fds, in.held.remove(m.name)...)
	}
	if m.status != "" {
		in.opt.OnEvent(Event{What: Status, PID: in.pid, Text: m.status})
	}
	if m.ready {
		in.life.ready = true
		if !in.life.everReady {
			in.life.everReady = true
			in.opt.OnReady()
		}
	}
	if m.stopping {
		in.life.stopping = true
	}
	if m.extend > 0 {
		select {
		case <-in.extended: // it is replaced
		default:
		}
		in.extended <- m.extend // nobody else sends
	}
	// Closing a barrier's descriptor, among these, is the answer to it.
	return errors.Join(append(errs, closeAll(fds))...)
}

func (in *inbox) pushLocked(name string, fds []*sys.FD) error {
	var errs []error
	for _, fd := range fds {
		if in.held.has(fd) {
			errs = append(errs, fd.Close())
			continue
		}
		if err := in.held.room(name, in.opt.Limit); err != nil {
			errs = append(errs, fmt.Errorf("hold %s: %w", name, err), fd.Close())
			continue
		}
		in.held.add(name, fd)
	}
	if len(fds) == 0 {
		errs = append(errs, fmt.Errorf("%w: push of %s without a descriptor", ErrBadMessage, name))
	}
	return errors.Join(errs...)
}

// workerGone handles what the dead worker has left in the queue, so that the
// next one gets every descriptor that was pushed, and returns what is known of
// its life. Nobody's messages count from then on: its pid may be another's.
func (in *inbox) workerGone() life {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.drainLocked()
	in.pid = 0
	l := in.life
	in.life.ready, in.life.stopping = false, false
	return l
}

func (in *inbox) snapshot() Held {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.held.held()
}

func (in *inbox) everReady() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.life.everReady
}

// close ends the reading and closes everything.
func (in *inbox) close() error {
	errs := []error{in.waker.Wake()}
	<-in.done
	errs = append(errs, in.held.close(), in.socket.Close(), in.waker.Close())
	if !strings.HasPrefix(in.address, "@") {
		if err := os.Remove(in.address); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the notify socket: %w", err))
		}
	}
	return errors.Join(errs...)
}
