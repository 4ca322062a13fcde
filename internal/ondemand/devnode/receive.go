package devnode

import (
	"errors"
	"io"
	"path/filepath"
	"syscall"

	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
	"github.com/lacunafs/lacuna/internal/sys"
)

// receive obeys commands until the connection ends.
func (s *Server) receive(c *session) {
	buf := make([]byte, proto.MaxCommand+1) // one more: longer messages show
	oob := make([]byte, 64)
	for {
		n, oobn, _, _, err := c.conn.ReadMsgUnix(buf, oob)
		// With SO_PASSCRED every message has ancillary data, also an empty
		// one; the end of the connection has none.
		if errors.Is(err, syscall.ECONNRESET) {
			// The daemon left records unread. It is told once, before the
			// commands that are still there (net/unix/af_unix.c,
			// unix_release_sock; net/core/datagram.c).
			continue
		}
		if err != nil && (!errors.Is(err, io.EOF) || oobn == 0) {
			return
		}
		control, err := sys.ParseControl(oob[:oobn])
		s.report(err)
		for _, fd := range control.FDs { // nobody asked for them
			s.report(fd.Close())
		}
		if a := s.obey(c, buf[:n]); a != (answer{}) && !s.answer(c, a) {
			return
		}
	}
}

// obey carries out one command and returns its answer, if it has one.
func (s *Server) obey(c *session, msg []byte) answer {
	cmd, err := proto.ParseCommand(msg)
	var refused *proto.RefusedError
	if errors.As(err, &refused) {
		return answer{Answer: proto.Answer{Refused: refused}}
	}
	switch cmd.Verb {
	case proto.Dir:
		refused = s.commandDir(c, cmd)
	case proto.Tag:
		refused = s.commandTag(c, cmd)
	case proto.Bind:
		refused = s.commandBind(c, cmd)
	case proto.Done:
		refused = s.done(c, cmd)
	case proto.File:
		s.mu.Lock()
		req, _ := s.lookupLocked(c, cmd.ID)
		s.mu.Unlock()
		if req != nil {
			return answer{Answer: proto.Answer{File: &cmd.ID}, object: req.object}
		}
		refused = cmd.Refuse(syscall.EINVAL, "unknown id")
	case proto.Sync:
		return answer{Answer: proto.Answer{Synced: true}}
	}
	if refused != nil {
		return answer{Answer: proto.Answer{Refused: refused}}
	}
	return answer{}
}

// commandDir checks that the daemon means the directory that is served.
func (s *Server) commandDir(c *session, cmd proto.Command) *proto.RefusedError {
	if c.dirGiven || c.bound {
		return cmd.Refuse(syscall.EEXIST, "given already")
	}
	if !filepath.IsAbs(cmd.Arg) {
		return cmd.Refuse(syscall.EINVAL, "not an absolute path: "+cmd.Arg)
	}
	same, err := s.dir.is(cmd.Arg)
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		return cmd.Refuse(errno, err.Error())
	}
	if !same {
		return cmd.Refuse(syscall.EINVAL, "not the bound directory: "+cmd.Arg)
	}
	s.mu.Lock()
	c.dirGiven = true
	s.mu.Unlock()
	return nil
}

func (s *Server) commandTag(c *session, cmd proto.Command) *proto.RefusedError {
	if c.tag != "" || c.bound {
		return cmd.Refuse(syscall.EEXIST, "given already")
	}
	s.mu.Lock()
	c.tag = cmd.Arg
	s.mu.Unlock()
	return nil
}

// commandBind makes c the one that requests go to.
func (s *Server) commandBind(c *session, cmd proto.Command) *proto.RefusedError {
	if c.bound {
		return cmd.Refuse(syscall.EBUSY, "bound already")
	}
	if !c.dirGiven {
		return cmd.Refuse(syscall.EINVAL, "no dir given")
	}
	fd, err := dupConn(c.conn)
	if err != nil {
		return cmd.Refuse(syscall.EIO, err.Error())
	}
	s.onBind(fd, c.tag)
	s.report(fd.Close())
	s.mu.Lock()
	c.bound = true
	s.mu.Unlock()
	return nil
}
