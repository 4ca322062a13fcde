package devnode

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

// request is one Fill. Whoever takes it out of Server.pending ends it.
type request struct {
	id     uint64
	object *Object
	r      ondemand.Range
	queued *list.Element // in session.records; nil once handed out
	ended  chan struct{} // closed when err is set
	err    error
}

// Fill hands r of the object to the daemon and waits for its done. It fails at
// once where no daemon is bound.
func (s *Server) Fill(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	if err := s.fill(ctx, id, r); err != nil {
		return fmt.Errorf("fill %s %v: %w", id.Short(), r, err)
	}
	return nil
}

func (s *Server) fill(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	object, err := s.dir.Object(id)
	if err != nil {
		return err
	}
	// Presence knows whole blocks only; the table asks for such, so that
	// this changes nothing there.
	r = r.Blocks(object.Size())
	if object.Has(r) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	req, err := s.submit(object, r)
	if err != nil {
		return err
	}
	select {
	case <-req.ended:
		return req.err
	case <-ctx.Done():
	}
	s.drop(req, ctx.Err())
	<-req.ended
	return req.err
}

// submit makes a request pending and queues it for the daemon.
func (s *Server) submit(object *Object, r ondemand.Range) (*request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.session
	if s.stopped || c == nil || !c.bound || c.closing {
		return nil, errors.Join(ErrNoDaemon, ondemand.ErrFlushed)
	}
	req := &request{id: s.nextID(), object: object, r: r, ended: make(chan struct{})}
	s.pending[req.id] = req
	req.queued = c.records.PushBack(req)
	c.work.Signal()
	return req, nil
}

// takeLocked takes a request out of the pending ones. false: somebody has.
func (s *Server) takeLocked(req *request) bool {
	if s.pending[req.id] != req {
		return false
	}
	delete(s.pending, req.id)
	if req.queued != nil {
		s.session.records.Remove(req.queued)
		req.queued = nil
	}
	return true
}

// end wakes the Fill. The caller has taken req.
func (req *request) end(err error) {
	req.err = err
	close(req.ended)
}

// drop ends a request whose Fill does not want to wait any longer. One that is
// being checked after its done ends by that.
func (s *Server) drop(req *request, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.takeLocked(req) {
		s.counters.Failed++
		req.end(err)
	}
}

// flushLocked ends all pending requests: no one is left to fill them.
func (s *Server) flushLocked() {
	for _, req := range s.pending {
		s.takeLocked(req)
		s.counters.Flushed++
		req.end(fmt.Errorf("the daemon has gone: %w", ondemand.ErrFlushed))
	}
}

// lookup finds the request that the daemon names by id, if it has been handed
// out to it. past: id is of the incarnation before, on the same connection.
func (s *Server) lookupLocked(c *session, id uint64) (req *request, past bool) {
	req = s.pending[id]
	if req == nil || req.queued != nil {
		return nil, c.inherited && id != 0 && id < s.firstID
	}
	return req, false
}

// done ends a request as the daemon says.
func (s *Server) done(c *session, cmd proto.Command) *proto.RefusedError {
	s.mu.Lock()
	req, past := s.lookupLocked(c, cmd.ID)
	if req == nil {
		s.mu.Unlock()
		if past {
			return nil // it has been handed out again, with another id
		}
		return cmd.Refuse(syscall.EINVAL, "unknown id")
	}
	s.takeLocked(req)
	s.mu.Unlock()

	// A fill that is not checked is not done, also if the check panics.
	err := ondemand.ErrNotFilled
	defer func() {
		s.mu.Lock()
		if err == nil {
			s.counters.Done++
		} else {
			s.counters.Failed++
		}
		s.mu.Unlock()
		req.end(err)
	}()
	if cmd.Errno != 0 {
		err = fmt.Errorf("the daemon says: %w", cmd.Errno)
		return nil
	}
	if err = req.object.filled(req.r); err != nil {
		if errors.Is(err, ondemand.ErrNotFilled) {
			return cmd.Refuse(syscall.ENODATA, "a hole is left in the range; the reader got EIO")
		}
		return cmd.Refuse(syscall.EIO, err.Error())
	}
	return nil
}
