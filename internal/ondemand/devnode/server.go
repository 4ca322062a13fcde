package devnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// ErrNoDaemon: no daemon is connected and bound. It comes with
// ondemand.ErrFlushed: the reader gets EIO.
var ErrNoDaemon = errors.New("no daemon on the devnode")

// Options say what a Server serves and what it inherits.
type Options struct {
	// Path of the socket. Unused where Listener is set.
	Path string
	// Dir holds the objects. The Server does not close it.
	Dir *Dir
	// NextID gives request ids: each call a higher one than ever before, also
	// than in earlier incarnations of the process. It is called with a lock
	// held. nil: a counter that starts at 1.
	NextID func() uint64

	// Listener and Conn are inherited from the incarnation before, or nil.
	// Conn is a connection that OnBind told of, and ConnTag its tag. The
	// Server owns both, also when New fails.
	Listener *net.UnixListener
	Conn     *net.UnixConn
	ConnTag  string

	// OnBind is told of each connection that binds, before the first record
	// is handed out on it; conn is closed when OnBind returns. OnDisconnect
	// is told when that connection has ended. They are called in turn, never
	// for an inherited Conn's bind, and not by Release. Both may be nil.
	OnBind       func(conn *sys.FD, tag string)
	OnDisconnect func()
	// OnError is told of errors that concern no request, for the log: a
	// connection that could not be made or closed. It may be nil.
	OnError func(error)
}

// Server hands requests to the one external daemon. It is an ondemand.Filler.
type Server struct {
	dir          *Dir
	path         string
	socket       sys.Inode // of the file at path
	listener     *net.UnixListener
	onBind       func(*sys.FD, string)
	onDisconnect func()
	firstID      uint64 // ids up to this one were given by earlier incarnations
	served       chan struct{}
	onError      func(error)
	stopOnce     sync.Once
	stopErr      error // set by stopOnce

	mu       sync.Mutex
	nextID   func() uint64
	session  *session // nil: no daemon is connected
	pending  map[uint64]*request
	counters Counters
	serving  bool
	stopped  bool // for good: no session, no request any more
	released bool // stopped by Release
}

// Counters count requests since New.
type Counters struct {
	// Pending requests wait for their done. HandedOut ones went to a daemon.
	Pending, HandedOut uint64
	// Every request ends as one of these: Done with its data, Failed by the
	// daemon's errno, by missing data or by its deadline, or Flushed.
	Done, Failed, Flushed uint64
}

// Status is what the devnode is doing.
type Status struct {
	// PID of the daemon that is connected, 0: none.
	PID int
	// Tag is what that daemon calls itself. Bound: requests go to it.
	Tag   string
	Bound bool
	Counters
}

var _ ondemand.Filler = (*Server)(nil)

// New takes the socket: a dead instance's file at Path is replaced, a live
// one's is ErrInUse. Connections are accepted once Serve runs.
func New(o Options) (*Server, error) {
	s := &Server{
		dir: o.Dir, path: o.Path, listener: o.Listener, nextID: o.NextID,
		onBind: o.OnBind, onDisconnect: o.OnDisconnect,
		pending: map[uint64]*request{}, served: make(chan struct{}),
	}
	if s.nextID == nil {
		var last uint64
		s.nextID = func() uint64 { last++; return last }
	}
	if s.onBind == nil {
		s.onBind = func(*sys.FD, string) {}
	}
	if s.onDisconnect == nil {
		s.onDisconnect = func() {}
	}
	s.onError = o.OnError
	if err := s.open(); err != nil {
		return nil, errors.Join(err, closeConn(o.Conn))
	}
	if o.Conn != nil {
		s.firstID = s.nextID()
		c, refused := s.newSession(o.Conn)
		if refused != nil {
			// It ended while no one was here: its requests are flushed by
			// there being no session.
			s.onDisconnect()
			s.turnAway(o.Conn, refused)
			return s, nil
		}
		c.inherited, c.bound, c.tag = true, true, o.ConnTag
		s.session = c
	}
	return s, nil
}

// Serve talks to daemons until ctx ends, which does what Close does, or until
// Close or Release. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving || s.stopped {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.serving = true
	c := s.session
	s.mu.Unlock()
	defer close(s.served)

	unhook := context.AfterFunc(ctx, func() { s.report(s.stop(false)) })
	defer unhook()
	var sessions sync.WaitGroup
	if c != nil {
		sessions.Go(func() { s.run(c) })
	}
	err := s.accept(ctx, &sessions)
	// accept ends early only when the listener is broken.
	err = errors.Join(err, s.stop(false))
	sessions.Wait()
	return err
}

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context, sessions *sync.WaitGroup) error {
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		var temporary interface{ Temporary() bool }
		if errors.As(err, &temporary) && temporary.Temporary() {
			// Out of descriptors or memory: others may give some back.
			pause, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			<-pause.Done()
			cancel()
			continue
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", s.path, err)
		}
		c, refused := s.admit(conn)
		if refused != nil {
			s.turnAway(conn, refused)
			continue
		}
		sessions.Go(func() { s.run(c) })
	}
}

// Unlink removes the socket's file, if it is still the Server's: no daemon comes
// any more. Who is connected stays, and Close does the rest.
func (s *Server) Unlink() error { return s.unlink() }

// Close ends everything: pending requests are flushed and later ones fail, the
// daemon is disconnected, the socket's file is removed. It returns when
// nothing of the Server runs any more. A second call does nothing.
func (s *Server) Close() error { return s.end(false) }

// Release ends the Server as the death of its process would: connection and
// socket live on in the duplicates that others hold, for the next incarnation.
// Pending requests are flushed: whoever answers readers must have stopped.
func (s *Server) Release() error { return s.end(true) }

func (s *Server) end(release bool) error {
	err := s.stop(release)
	s.mu.Lock()
	serving := s.serving
	s.mu.Unlock()
	if serving {
		<-s.served
	}
	return err
}

// stop lets no session and no request in any more, and ends those there are.
// Later calls wait for the first and return what it returned.
func (s *Server) stop(release bool) error {
	s.stopOnce.Do(func() { s.stopErr = s.stopNow(release) })
	return s.stopErr
}

func (s *Server) stopNow(release bool) error {
	s.mu.Lock()
	s.stopped, s.released = true, release
	c, serving := s.session, s.serving
	s.flushLocked()
	s.mu.Unlock()

	var err error
	if !release {
		err = s.unlink()
	}
	err = errors.Join(err, s.listener.Close())
	if c != nil {
		s.hangUp(c, release)
		if !serving {
			s.finish(c)
		}
	}
	return err
}

// Status tells what the devnode is doing.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Counters: s.counters}
	st.Pending = uint64(len(s.pending))
	if c := s.session; c != nil {
		st.PID, st.Tag, st.Bound = c.peer.PID, c.tag, c.bound
	}
	return st
}

// IsDaemon tells whether pid, a process that is stopped in a read, is the bound
// daemon or below it in the process tree. Such a process writes or reads for a
// fill: making it wait for that fill would be a deadlock.
func (s *Server) IsDaemon(pid int) bool {
	s.mu.Lock()
	c := s.session
	bound := c != nil && c.bound
	s.mu.Unlock()
	if !bound || pid <= 0 || !IsBelow(pid, c.peer.PID) {
		return false
	}
	// The number is the daemon's as long as the process has not ended: asked
	// after the walk, or a process that got the number since would count.
	return !s.ended(c)
}

// report tells of errors, except that a peer has gone or an end has come twice.
func (s *Server) report(errs ...error) {
	for _, err := range errs {
		switch {
		case err == nil, s.onError == nil:
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		default:
			s.onError(err)
		}
	}
}
