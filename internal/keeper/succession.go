package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// keeperWatch waits for the keeper's end.
type keeperWatch struct {
	pid     int
	process *sys.FD // pidfd
	waker   *sys.Waker
	child   bool          // of this process, which then reaps it
	lost    chan struct{} // closed when the keeper has ended
	done    chan struct{} // closed when nobody waits any more
}

// watchKeeper watches pid. alive tells, once the process is opened, whether it
// can still be the keeper.
func watchKeeper(pid int, alive func() bool, child bool) (*keeperWatch, error) {
	k := &keeperWatch{pid: pid, child: child, lost: make(chan struct{}), done: make(chan struct{})}
	process, err := sys.OpenProcess(pid)
	if errors.Is(err, syscall.ESRCH) {
		close(k.lost)
		close(k.done)
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch the keeper: %w", err)
	}
	k.process = process
	if k.waker, err = sys.NewWaker(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the keeper: %w", err), process.Close())
	}
	if !alive() {
		close(k.lost)
		close(k.done)
		return k, nil
	}
	go k.wait()
	return k, nil
}

func (k *keeperWatch) wait() {
	defer close(k.done)
	ended, _, err := sys.Poll(k.process, k.waker)
	if err == nil && !ended {
		return
	}
	// A keeper that cannot be watched counts as lost rather than as there.
	for ended && k.child {
		_, err := syscall.Wait4(k.pid, nil, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	close(k.lost)
}

// isLost asks the kernel, which knows before the channel does.
func (k *keeperWatch) isLost() bool { return k.isLostWithin(0) }

// isLostWithin waits until the keeper has ended, for limit at most.
func (k *keeperWatch) isLostWithin(limit time.Duration) bool {
	select {
	case <-k.lost:
		return true
	default:
	}
	ended, err := sys.WaitReadable(k.process, int(limit.Milliseconds()))
	return err != nil || ended
}

func (k *keeperWatch) close() error {
	if k.waker == nil {
		return nil
	}
	err := k.waker.Wake()
	<-k.done
	return errors.Join(err, k.process.Close(), k.waker.Close())
}

// Start is how StartKeeper starts a keeper.
type Start struct {
	// Path is the program; it calls Run with the value of EnvState.
	Path string
	// Args follow Path.
	Args []string
	// Env is its environment, without the variables of this package.
	Env []string
	// Address is as in Options.
	Address string
}

// StartKeeper starts a new keeper in place of a lost one: a process in its own
// session that takes all that was pushed, and from then on supervises this
// process, and its successors. It returns once the new keeper answers; until
// then this process is alone, and its death would be the end of what it holds.
// On error no new keeper runs, and StartKeeper may be called again. The keeper
// before must be lost.
func (c *Client) StartKeeper(ctx context.Context, start Start) error {
	c.mu.Lock()
	if c.watch == nil || !c.watch.isLost() && !(deaf(c.address) && c.watch.isLostWithin(endLimit)) {
		c.mu.Unlock()
		return errors.New("start a keeper: the one before has not died")
	}
	err := c.startLocked(start)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	err = c.Barrier(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("start a keeper: %w", err), c.watch.kill())
	}
	c.pid = c.watch.pid
	return nil
}

// kill ends a keeper that does not answer. Its child, this process, lives on.
func (k *keeperWatch) kill() error {
	err := sys.SignalProcess(k.process, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		err = nil
	}
	<-k.done
	return err
}

func (c *Client) startLocked(start Start) (err error) {
	address, socket, err := listen(start.Address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	self, err := sys.OpenProcess(os.Getpid())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, self.Close()) }()
	// In the new process: the state at 3, then socket, this process, and what is held.
	st := state{
		Version: stateVersion, Address: address, Socket: 4,
		Worker: os.Getpid(), Process: 5,
		Ready: c.ready, Stopping: c.stopping, EverReady: c.ready || c.inherited,
		Deaths: c.deaths,
	}
	files := []uintptr{0, 1, 2, 0, uintptr(socket.Int()), uintptr(self.Int())}
	for _, e := range c.sent.entries {
		if raw := e.fd.Int(); raw >= 0 {
			st.Held = append(st.Held, stateHeld{e.name, len(files)})
			files = append(files, uintptr(raw))
		}
	}
	memfd, err := st.write()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memfd.Close()) }()
	files[3] = uintptr(memfd.Int())
	env := append(cleanEnv(start.Env), EnvState+"="+strconv.Itoa(3))
	argv := append([]string{start.Path}, start.Args...)
	pid, err := syscall.ForkExec(start.Path, argv, &syscall.ProcAttr{
		Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", start.Path, err)
	}
	watch, err := watchKeeper(pid, func() bool { return true }, true)
	if err != nil {
		return errors.Join(err, killChild(pid))
	}
	old := c.watch
	c.watch, c.address = watch, address
	return old.close()
}
