package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

var (
	// ErrNoKeeper is returned where the environment names no keeper.
	ErrNoKeeper = errors.New("no keeper: " + EnvSocket + " is not set")
	// ErrKeeperLost is returned once the keeper has died: whether it still
	// took the messages before that is not known.
	ErrKeeperLost = errors.New("keeper has died")
)

// sendLimit is the time, in seconds, in which the keeper has to make room in
// its queue.
const sendLimit = 10

// endLimit is the time in which a process that has closed its files ends: a killed
// one closes them first (kernel/exit.c, do_exit: exit_files, then exit_notify).
const endLimit = 10 * time.Second

// Environment is what a keeper tells its worker. Empty fields: not set.
type Environment struct {
	NotifySocket, ListenFDs, ListenFDNames, ListenPID, KeeperPID, Deaths string
}

// ReadEnvironment takes the values that getenv has.
func ReadEnvironment(getenv func(string) string) Environment {
	return Environment{
		NotifySocket:  getenv(EnvSocket),
		ListenFDs:     getenv(EnvFDs),
		ListenFDNames: getenv(EnvFDNames),
		ListenPID:     getenv(EnvPID),
		KeeperPID:     getenv(EnvKeeperPID),
		Deaths:        getenv(EnvDeaths),
	}
}

// Client is the worker's side: it works with systemd 246 or newer and with Run.
// Its methods may be called concurrently, except Close.
type Client struct {
	mu       sync.Mutex
	address  string
	sent     table // what the keeper should hold
	ready    bool
	stopping bool
	watch    *keeperWatch // nil: the keeper's life is not watched (systemd, or not yet)
	// unwatched: the keeper is ours, and Watch was not called yet.
	unwatched bool
	pid       int    // of the last keeper that was there
	inherited bool   // a worker before this one was ready
	deaths    Deaths // of workers before this one
}

// Inherit makes the client, and takes over, close-on-exec, the descriptors that
// the keeper has handed to this process. They are the caller's and, until
// Remove, must not be closed. A ListenPID that is not this process's says that
// they are not for it: then there are none. It is absent where the keeper is ours.
func Inherit(env Environment) (*Client, Held, error) {
	deaths, err := parseDeaths(env.Deaths)
	if err != nil {
		return nil, nil, err
	}
	c := &Client{address: env.NotifySocket, pid: os.Getppid(), deaths: deaths}
	if env.ListenPID == "" || env.ListenPID == strconv.Itoa(os.Getpid()) {
		if err := c.inherit(env); err != nil {
			return nil, nil, err
		}
	}
	if env.KeeperPID == "" {
		return c, c.sent.held(), nil
	}
	pid, err := strconv.Atoi(env.KeeperPID)
	if err != nil || pid <= 0 {
		return nil, nil, fmt.Errorf("read %s=%q: not a pid", EnvKeeperPID, env.KeeperPID)
	}
	c.pid, c.unwatched = pid, true
	return c, c.sent.held(), nil
}

// Watch begins to watch the keeper's life, if it is ours. It opens descriptors
// that are closed again when the next keeper is found, so it comes after whatever
// needs certain numbers, and before anything asks whether the keeper is lost.
func (c *Client) Watch() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unwatched {
		return nil
	}
	// A worker is its keeper's child when it starts. Another parent means that
	// the keeper has died since, and that its pid may be another process's.
	pid := c.pid
	watch, err := watchKeeper(pid, func() bool { return os.Getppid() == pid }, false)
	if err != nil {
		return err
	}
	c.watch, c.unwatched = watch, false
	return nil
}

func (c *Client) inherit(env Environment) error {
	if env.ListenFDs == "" {
		return nil
	}
	n, err := strconv.Atoi(env.ListenFDs)
	if err != nil || n < 0 {
		return fmt.Errorf("read %s=%q: not a count", EnvFDs, env.ListenFDs)
	}
	var names []string
	if env.ListenFDNames != "" {
		names = strings.Split(env.ListenFDNames, ":")
	}
	if len(names) != n {
		return fmt.Errorf("read %s: %d names for %d descriptors", EnvFDNames, len(names), n)
	}
	const first = 3 // SD_LISTEN_FDS_START
	for i, name := range names {
		if !sys.IsOpen(first + i) {
			return fmt.Errorf("inherit %s: descriptor %d is not open", name, first+i)
		}
		if err := sys.SetInherit(first+i, false); err != nil {
			return fmt.Errorf("inherit %s: %w", name, err)
		}
		c.sent.add(name, sys.NewFD(first+i))
	}
	c.inherited = n > 0 // a keeper has no second worker before one was ready
	return nil
}

// Push has the keeper hold a duplicate of fd under name; see CheckName. Several
// may share a name, but one open file is held once, under the name it came
// with first. The keeper has it for certain once a later Barrier has returned.
// Until Remove, fd must not be closed: it goes to the next keeper too.
func (c *Client) Push(name string, fd *sys.FD) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sent.room(name, 1<<20); err != nil { // the number is the keeper's to limit
		return fmt.Errorf("push %s: %w", name, err)
	}
	if c.sent.has(fd) {
		return nil
	}
	if err := c.sendLocked(message{push: true, name: name}, fd.Int()); err != nil {
		return fmt.Errorf("push %s: %w", name, err)
	}
	c.sent.add(name, fd)
	return nil
}

// Remove has the keeper close everything that it holds under name.
func (c *Client) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendLocked(message{remove: true, name: name}); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	c.sent.remove(name)
	return nil
}

// Ready tells the keeper that the worker works. From then on its death leads to
// a restart.
func (c *Client) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendLocked(message{ready: true}); err != nil {
		return fmt.Errorf("announce ready: %w", err)
	}
	c.ready = true
	return nil
}

// Stopping tells the keeper that the worker ends for good and is not to be
// restarted. A worker that leaves for the next one (SIGUSR1) does not say it.
func (c *Client) Stopping() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendLocked(message{stopping: true}); err != nil {
		return fmt.Errorf("announce stopping: %w", err)
	}
	c.stopping = true
	return nil
}

// Extend asks the keeper to let the worker, which stops, take so much longer from
// now on (sd_notify(3), EXTEND_TIMEOUT_USEC=).
func (c *Client) Extend(d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendLocked(message{extend: min(d.Round(time.Microsecond), maxExtend)}); err != nil {
		return fmt.Errorf("ask for more time: %w", err)
	}
	return nil
}

// Status tells the keeper a line of text for people.
func (c *Client) Status(text string) error {
	m := message{status: text}
	if got, err := parseMessage(m.encode()); err != nil || got != m {
		return fmt.Errorf("send status %q: %w", text, ErrBadMessage)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendLocked(m); err != nil {
		return fmt.Errorf("send status: %w", err)
	}
	return nil
}

// Barrier returns nil once the keeper has handled everything that was sent
// before (sd_notify_barrier(3)).
func (c *Client) Barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("wait for the keeper: %w", err)
	}
	c.mu.Lock()
	watch, address := c.watch, c.address
	err = c.sendLocked(message{barrier: true}, int(w.Fd()))
	c.mu.Unlock()
	// From here on the keeper has the only descriptor of the end that writes.
	if err := errors.Join(err, w.Close()); err != nil {
		return errors.Join(fmt.Errorf("wait for the keeper: %w", err), r.Close())
	}
	unblock := context.AfterFunc(ctx, func() {
		// The only error is that r is closed, and then nobody waits.
		if err := r.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return
		}
	})
	_, err = r.Read(make([]byte, 1))
	unblock()
	closeErr := r.Close()
	switch {
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("wait for the keeper: %w", errors.Join(ctx.Err(), err, closeErr))
	case watch != nil && (watch.isLost() || deaf(address)):
		// The end of the keeper closes the pipe as well, and the socket before it
		// (net/unix/af_unix.c, unix_release_sock), but is announced only later.
		return fmt.Errorf("wait for the keeper: %w", ErrKeeperLost)
	}
	return closeErr
}

// sendLocked sends m with the descriptors raws to the keeper. That it is lost is
// no error: the next one is told everything that counts, and until then nobody
// must end for it who may be the last to hold what readers sleep on.
func (c *Client) sendLocked(m message, raws ...int) error {
	if c.address == "" {
		return ErrNoKeeper
	}
	err := sys.SendDatagram(c.address, m.encode(), raws, sendLimit)
	if err == nil || c.watch == nil {
		return err
	}
	if c.watch.isLost() || isRefused(err) && c.watch.isLostWithin(endLimit) {
		return nil
	}
	return err
}

// isRefused tells whether err says that nobody has the keeper's socket any more.
// Another keeper may have removed its file since.
func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// deaf tells whether nobody has the socket at address.
func deaf(address string) bool {
	conn, err := net.Dial("unixgram", address)
	if err == nil {
		err = conn.Close()
	}
	return isRefused(err)
}

// Deaths are those of the workers before this one, as far as the keeper counts
// them: systemd does not tell.
func (c *Client) Deaths() Deaths { return c.deaths }

// KeeperPID is the keeper's pid. That of a new one is told once it answers: a
// signal that somebody sent it before would kill it.
func (c *Client) KeeperPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Lost is closed when the keeper has died. After StartKeeper it is another
// channel, for the new one. It is nil where systemd is the keeper.
func (c *Client) Lost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watch == nil {
		return nil
	}
	return c.watch.lost
}

// IsLost tells whether the keeper has died, also where Lost does not tell yet.
func (c *Client) IsLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watch != nil && c.watch.isLost()
}

// Holds tells whether anything was pushed, or inherited, and not removed.
func (c *Client) Holds() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sent.entries) > 0
}

// Close ends the watching. The descriptors stay open, and held.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watch == nil {
		return nil
	}
	err := c.watch.close()
	c.watch = nil
	return err
}
