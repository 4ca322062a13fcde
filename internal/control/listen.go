package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Listen makes the control socket, readable and writable by its owner only. A
// socket that a dead instance left is replaced; one that answers is an error, and
// so is a file that is no socket.
func Listen(socket string) (*net.UnixListener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the control socket's directory: %w", err)
	}
	l, err := listen(socket, dir)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	return l, nil
}

// listen makes the socket in a directory that nobody else may enter, and gives it
// its name once its permissions are right: nobody connects before.
func listen(socket, dir string) (l *net.UnixListener, err error) {
	if err := replaceable(socket); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".lacuna-socket-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, os.RemoveAll(private)); err != nil && l != nil {
			l, err = nil, errors.Join(err, l.Close())
		}
	}()
	inside := filepath.Join(private, "s")
	path, done, err := shorten(inside)
	if err != nil {
		return nil, err
	}
	made, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err := errors.Join(err, done()); err != nil {
		return nil, err
	}
	made.SetUnlinkOnClose(false) // it knows the socket by another name
	if err := errors.Join(os.Chmod(inside, 0o600), os.Rename(inside, socket)); err != nil {
		return nil, errors.Join(err, made.Close())
	}
	return made, nil
}

// replaceable fails where something else than a dead instance's socket is there.
func replaceable(socket string) error {
	conn, err := dial(context.Background(), socket)
	if err == nil {
		return errors.Join(fmt.Errorf("another instance answers there: %w", syscall.EADDRINUSE), conn.Close())
	}
	if !errors.Is(err, ErrNotRunning) {
		return err // it may be alive: a full queue, or no right to connect
	}
	info, err := os.Lstat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("what is there is not a socket: %w", fs.ErrExist)
	}
	return nil
}
