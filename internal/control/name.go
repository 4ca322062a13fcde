package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// Name is the file of a control socket.
type Name struct {
	socket string
	inode  sys.Inode // zero: it is not ours
}

// NameOf notes the file that l, which listens, has at socket, if it is l's: it may
// have been removed, and another instance may have made its own.
func NameOf(socket string, l *net.UnixListener) (Name, error) {
	n := Name{socket: socket}
	inode, err := socketInode(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	conn, err := dial(context.Background(), socket)
	if errors.Is(err, ErrNotRunning) {
		return n, nil // l would have taken it
	}
	if err != nil {
		return n, err
	}
	// Both are the process that has made the socket listen (net/unix/af_unix.c,
	// unix_listen), which need not live any more.
	there, err := sys.PeerOf(conn.(*net.UnixConn)) //nolint:errcheck,forcetypeassert // dial makes no other
	own, ownErr := sys.PeerOf(l)
	if err := errors.Join(err, ownErr, conn.Close()); err != nil {
		return n, err
	}
	if there.PID == own.PID {
		n.inode = inode
	}
	return n, nil
}

// Remove removes the file if it is still the one that was noted. The inode's
// number is not another's as long as the socket is open.
func (n Name) Remove() error {
	inode, err := socketInode(n.socket)
	if errors.Is(err, fs.ErrNotExist) || err == nil && inode != n.inode {
		return nil
	}
	if err == nil {
		err = os.Remove(n.socket)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the control socket: %w", err)
	}
	return nil
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
