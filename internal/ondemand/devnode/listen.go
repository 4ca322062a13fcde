package devnode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// ErrInUse: another process listens on the socket.
var ErrInUse = errors.New("in use by another process")

// lockWait is how long another instance may take to make its socket.
const lockWait = 2 * time.Second

// open makes the socket, or takes over the inherited one.
func (s *Server) open() error {
	if s.listener != nil {
		s.path = s.listener.Addr().String()
	} else if err := s.listen(); err != nil {
		return fmt.Errorf("devnode %s: %w", s.path, err)
	}
	s.listener.SetUnlinkOnClose(false) // stop does, if the file is still ours
	inode, err := socketInode(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("devnode %s: %w", s.path, err), s.listener.Close())
	}
	s.socket = inode
	return nil
}

// listen makes the socket, while no other instance does the same: between
// finding a dead instance's file and replacing it, it could be a live one's.
func (s *Server) listen() error {
	parent, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // only read; closing drops the lock
	if err := lock(parent); err != nil {
		return err
	}
	if err := clearDead(s.path); err != nil {
		return err
	}
	s.listener, err = net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: s.path})
	if err != nil {
		return err
	}
	// Who connects before this is still asked for its uid.
	if err := os.Chmod(s.path, 0o600); err != nil {
		return errors.Join(err, s.listener.Close())
	}
	return nil
}

// lock takes the flock of the directory, waiting a little for others.
func lock(dir *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		err := sys.TryLock(int(dir.Fd()))
		if !errors.Is(err, sys.ErrLocked) {
			return err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", dir.Name(), err)
		}
	}
}

// clearDead removes a socket file that no process listens on any more.
func clearDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket is in the way")
	}
	// Asked with another socket type, so that a live devnode does not take
	// this for a daemon: EPROTOTYPE if it listens, ECONNREFUSED if nobody
	// does (net/unix/af_unix.c, unix_find_bsd).
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, syscall.EPROTOTYPE), errors.Is(err, syscall.EAGAIN):
		return ErrInUse
	}
	return err
}

func socketInode(path string) (sys.Inode, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return sys.Inode{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return sys.Inode{}, fmt.Errorf("stat %s: no inode", path)
	}
	return sys.Inode{Dev: st.Dev, Ino: st.Ino}, nil
}

// unlink removes the socket's file, if it is still ours.
func (s *Server) unlink() error {
	inode, err := socketInode(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && inode != s.socket {
		return nil
	}
	if err == nil {
		err = os.Remove(s.path)
	}
	if err != nil {
		return fmt.Errorf("remove the devnode's socket: %w", err)
	}
	return nil
}

// ListenerFD is a duplicate of the listening socket, for the keeper. The caller
// closes it.
func (s *Server) ListenerFD() (*sys.FD, error) { return dupConn(s.listener) }

// dupConn duplicates the descriptor behind c, which stays as it is.
func dupConn(c syscall.Conn) (*sys.FD, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate a socket: %w", err)
	}
	var fd *sys.FD
	var inner error
	err = rc.Control(func(raw uintptr) { fd, inner = sys.DupAbove(int(raw), 3) })
	if err := errors.Join(err, inner); err != nil {
		return nil, fmt.Errorf("duplicate a socket: %w", err)
	}
	return fd, nil
}

func closeConn(c *net.UnixConn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}
