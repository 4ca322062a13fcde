package devnode

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
	"github.com/lacunafs/lacuna/internal/sys"
)

// maxAnswers is how many answers may wait for a daemon that sends commands and
// reads nothing, before it is disconnected.
const maxAnswers = 4096

// session is one connection of a daemon.
type session struct {
	conn    *net.UnixConn
	peer    sys.Peer
	process *sys.FD    // of the process that connected
	stop    *sys.Waker // ends the watch over process
	gone    chan struct{}

	// Set by the goroutine that reads commands, read by all: under Server.mu.
	dirGiven  bool
	tag       string
	bound     bool
	inherited bool

	// Under Server.mu.
	work    *sync.Cond // answers, records or closing changed
	answers []answer
	records list.List // of *request, not handed out yet
	closing bool      // no more of either is taken
}

// answer waits to be sent; object's descriptor goes along.
type answer struct {
	proto.Answer
	object *Object
}

func (s *Server) newSession(conn *net.UnixConn) (*session, *proto.RefusedError) {
	open := proto.Command{Verb: proto.Open}
	peer, err := sys.PeerOf(conn)
	if err != nil {
		return nil, open.Refuse(syscall.EIO, err.Error())
	}
	if peer.UID != 0 && peer.UID != syscall.Geteuid() {
		return nil, open.Refuse(syscall.EPERM, fmt.Sprintf("uid %d may not serve this directory", peer.UID))
	}
	process, err := sys.PeerProcess(conn)
	if err != nil || peer.PID <= 0 {
		// Its own accesses could not be told from those of readers.
		return nil, open.Refuse(syscall.ESRCH, "the process that connected has ended or is out of sight")
	}
	stop, err := sys.NewWaker()
	if err == nil {
		if err = sys.PassCredentials(conn); err == nil {
			c := &session{conn: conn, peer: peer, process: process, stop: stop, gone: make(chan struct{})}
			c.work = sync.NewCond(&s.mu)
			return c, nil
		}
		err = errors.Join(err, stop.Close())
	}
	err = errors.Join(err, process.Close())
	return nil, open.Refuse(syscall.EIO, err.Error())
}

// admit makes conn the session, unless there is a daemon already.
func (s *Server) admit(conn *net.UnixConn) (*session, *proto.RefusedError) {
	c, refused := s.newSession(conn)
	for refused == nil {
		s.mu.Lock()
		first := s.session
		if first == nil && !s.stopped {
			s.session = c
			s.mu.Unlock()
			return c, nil
		}
		s.mu.Unlock()
		if first == nil {
			refused = proto.Command{Verb: proto.Open}.Refuse(syscall.ENODEV, "the devnode is being closed")
		} else if s.leaving(first) {
			// A daemon may come again before the end of the one before
			// has been noticed here.
			<-first.gone
		} else {
			refused = proto.Command{Verb: proto.Open}.Refuse(syscall.EBUSY,
				fmt.Sprintf("process %d is the daemon already", first.peer.PID))
		}
	}
	if c != nil {
		// Nothing can be done about a descriptor that does not close.
		refused = withClose(refused, c.process.Close(), c.stop.Close())
	}
	return nil, refused
}

// withClose adds what failed on the way out to the reason.
func withClose(refused *proto.RefusedError, errs ...error) *proto.RefusedError {
	if err := errors.Join(errs...); err != nil {
		refused.Reason += "; " + err.Error()
	}
	return refused
}

// ended tells whether the process that connected has.
func (s *Server) ended(c *session) bool {
	s.mu.Lock() // finish closes the descriptor under it
	defer s.mu.Unlock()
	if s.session != c {
		return true
	}
	ended, err := sys.WaitReadable(c.process, 0)
	return ended || err != nil
}

// leaving tells whether the session is certain to end soon by itself.
func (s *Server) leaving(c *session) bool {
	if s.ended(c) {
		return true
	}
	gone, err := sys.PeerHungUp(c.conn)
	return gone || errors.Is(err, net.ErrClosed)
}

// turnAway tells the peer why it is refused, and closes.
func (s *Server) turnAway(conn *net.UnixConn, refused *proto.RefusedError) {
	err := conn.SetDeadline(time.Now().Add(time.Second))
	if err == nil {
		_, err = conn.Write(refused.Encode())
	}
	// Closing with unread commands would make the peer's next read fail with
	// ECONNRESET before it sees the answer (net/unix/af_unix.c, unix_release_sock).
	err = errors.Join(err, conn.CloseRead(), conn.CloseWrite())
	for buf := make([]byte, 64); err == nil; {
		_, err = conn.Read(buf)
	}
	s.report(err, conn.Close())
}

// hangUp makes every goroutine of the session end. With keep the connection
// itself lives on in the duplicates that others hold.
func (s *Server) hangUp(c *session, keep bool) {
	var errs []error
	s.mu.Lock()
	if !c.closing {
		c.closing = true
		c.work.Broadcast()
		if !keep {
			errs = append(errs, c.conn.CloseWrite(), c.conn.CloseRead())
		}
		// With mu held: whoever hangs up second goes on to close both.
		errs = append(errs, c.conn.SetDeadline(time.Unix(1, 0)), c.stop.Wake())
	}
	s.mu.Unlock()
	s.report(errs...)
}

// drain makes the reading end as soon as the commands that were sent already
// are obeyed: the daemon's last done counts. After hangUp it does nothing, and
// why, if any, is hangUp's deadline.
func (s *Server) drain(c *session, why error) {
	s.mu.Lock()
	closing := c.closing
	s.mu.Unlock()
	if !closing {
		s.report(why, c.conn.CloseRead())
	}
}

// run serves one session until it ends.
func (s *Server) run(c *session) {
	var parts sync.WaitGroup
	parts.Go(func() { s.send(c) })
	parts.Go(func() { s.watch(c) })
	s.receive(c)
	s.hangUp(c, s.keep())
	s.mu.Lock()
	s.flushLocked() // before waiting for anything
	s.mu.Unlock()
	parts.Wait()
	s.finish(c)
}

// keep tells whether Release is going on.
func (s *Server) keep() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released
}

// finish ends a session whose goroutines have ended.
func (s *Server) finish(c *session) {
	s.report(c.conn.Close(), c.stop.Close())
	if c.bound && !s.keep() {
		s.onDisconnect()
	}
	s.mu.Lock()
	s.flushLocked()
	s.session = nil
	err := c.process.Close()
	s.mu.Unlock()
	s.report(err)
	close(c.gone)
}

// watch ends the session when the process that connected has ended: a child of
// it may hold the connection open for ever.
func (s *Server) watch(c *session) {
	ended, stopped, err := sys.Poll(c.process, c.stop)
	s.report(err)
	if ended || err != nil && !stopped {
		s.drain(c, nil)
	}
}

// send writes answers and records, in this order, until the session closes.
func (s *Server) send(c *session) {
	for {
		s.mu.Lock()
		for !c.closing && len(c.answers) == 0 && c.records.Len() == 0 {
			c.work.Wait()
		}
		if c.closing {
			s.mu.Unlock()
			return
		}
		var err error
		if len(c.answers) > 0 {
			a := c.answers[0]
			c.answers = c.answers[1:]
			s.mu.Unlock()
			err = c.sendAnswer(a)
		} else {
			req := c.records.Front().Value.(*request)
			c.records.Remove(req.queued)
			req.queued = nil
			s.counters.HandedOut++
			s.mu.Unlock()
			err = c.sendRecord(req)
		}
		if err != nil {
			s.drain(c, err)
			return
		}
	}
}

func (c *session) sendAnswer(a answer) error {
	if a.object == nil {
		_, err := c.conn.Write(a.Encode())
		return err
	}
	return a.object.withFD(func(raw int) error {
		_, _, err := c.conn.WriteMsgUnix(a.Encode(), syscall.UnixRights(raw), nil)
		return err
	})
}

// sendRecord waits as long as the daemon does not read.
func (c *session) sendRecord(req *request) error {
	record := proto.Record{ID: req.id, Off: uint64(req.r.Off), Len: uint64(req.r.Len), Path: req.object.leaf}
	b, err := record.Encode()
	if err == nil {
		_, err = c.conn.Write(b)
	}
	return err
}

// answer queues a. false: the daemon does not read its answers.
func (s *Server) answer(c *session, a answer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(c.answers) >= maxAnswers {
		return false
	}
	c.answers = append(c.answers, a)
	c.work.Signal()
	return true
}
