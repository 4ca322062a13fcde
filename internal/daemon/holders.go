package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode"
	"github.com/lacunafs/lacuna/internal/sys"
)

// The files of a bound directory are reached by their own names, not through a
// mount that could be busy. Who has an incomplete one open would read zeros from
// the moment on when the mark goes, so it stays until nobody has. The external
// daemon, which has them open to write, does not count.

// boundUsers tells who has incomplete files of the directory open or mapped. It looks
// into all processes, so mu is not held; gone: the directory is not bound any more.
func (i *Instance) boundUsers(b *boundDir) (users []string, gone bool, err error) {
	i.mu.Lock()
	gone = i.bound[b.record.Path] != b
	var files map[sys.Inode]string
	if !gone { // its files are open, and stay so while mu is held
		files, err = b.incomplete()
	}
	i.mu.Unlock()
	if gone || err != nil {
		return nil, gone, err
	}
	users, err = holders(files, b.server.IsDaemon, i.client.KeeperPID())
	return users, false, err
}

// incomplete are the directory's files of which something is missing, by name.
func (b *boundDir) incomplete() (map[sys.Inode]string, error) {
	files := make(map[sys.Inode]string)
	for _, o := range b.dir.Objects() {
		if o.Complete() {
			continue
		}
		inode, err := inodeOf(o.File().Stat())
		if err != nil {
			return nil, err
		}
		files[inode] = o.Leaf()
	}
	return files, nil
}

// boundLeft is boundUsers for the recorded directories that nobody serves: what
// is incomplete is told by holes, and who the daemon is by its connection, if
// that is held.
func boundLeft(list []record, held keeper.Held, except ...int) (left []standing, err error) {
	var errs []error
	for _, rec := range list {
		if rec.Kind != kindBind {
			continue
		}
		files, err := hollowIn(rec.Path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		isDaemon, err := heldDaemon(held, rec.Path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		users, err := holders(files, isDaemon, except...)
		errs = append(errs, err)
		if len(users) > 0 {
			left = append(left, standing{rec.Path, func() string { return some(users) }})
		}
	}
	return left, errors.Join(errs...)
}

// holders tells who has one of the files, which are given with their names, open
// or mapped: a text for each process.
func holders(files map[sys.Inode]string, isDaemon func(pid int) bool, except ...int) ([]string, error) {
	if len(files) == 0 {
		return nil, nil
	}
	set := make(map[sys.Inode]bool, len(files))
	for inode := range files {
		set[inode] = true
	}
	users, err := mount.Users(set, except...)
	if err != nil {
		return nil, err
	}
	var told []string
	for _, u := range users {
		if len(u.Open) == 0 || isDaemon(u.PID) {
			continue
		}
		var names []string
		for _, inode := range u.Open {
			names = append(names, files[inode])
		}
		told = append(told, fmt.Sprintf("process %d (%s) has %s open, which is incomplete", u.PID, u.Name, some(names)))
	}
	return told, nil
}

// some is a list for a message; a long one is cut.
func some(list []string) string {
	const most = 8
	if n := len(list) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), n)
	}
	return strings.Join(list, ", ")
}

// hollowIn finds the regular files in dir that have holes, by name.
func hollowIn(dir string) (map[sys.Inode]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for holes: %w", err)
	}
	files := make(map[sys.Inode]string)
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		inode, hollow, err := isHollow(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look for holes: %w", err)
		}
		if hollow {
			files[inode] = e.Name()
		}
	}
	return files, nil
}

// isHollow tells whether the file has a hole. Looking for holes raises no event,
// and neither does opening a file that an external daemon fills.
func isHollow(path string) (inode sys.Inode, hollow bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return inode, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return inode, false, err
	}
	if inode, err = inodeOf(st, nil); err != nil {
		return inode, false, err
	}
	hole, err := sys.NextHole(int(f.Fd()), 0)
	if errors.Is(err, io.EOF) {
		return inode, false, nil // it is empty
	}
	return inode, err == nil && hole < st.Size(), err
}

// inodeOf is the inode of what a stat has returned.
func inodeOf(st fs.FileInfo, err error) (sys.Inode, error) {
	if err != nil {
		return sys.Inode{}, err
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return sys.Inode{}, fmt.Errorf("stat %s: no inode", st.Name())
	}
	return sys.Inode{Dev: s.Dev, Ino: s.Ino}, nil
}

// heldDaemon tells the external daemon of a directory by the connection that is
// held: the process that connected, as long as it lives, and those below it.
func heldDaemon(held keeper.Held, dir string) (isDaemon func(pid int) bool, err error) {
	nobody := func(int) bool { return false }
	fds := held[namesOf(dir).conn]
	if len(fds) == 0 {
		return nobody, nil
	}
	conn, err := fromHeld(fds[0], net.FileConn)
	if err != nil {
		return nil, fmt.Errorf("look at the daemon of %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nobody, nil
	}
	peer, err := sys.PeerOf(unix)
	if err != nil {
		return nil, err
	}
	process, err := sys.PeerProcess(unix)
	if errors.Is(err, syscall.ESRCH) {
		return nobody, nil // it has ended, and its number may be another's
	}
	if err != nil {
		return nil, err
	}
	ended, err := sys.WaitReadable(process, 0)
	if err := errors.Join(err, process.Close()); err != nil || ended {
		return nobody, err
	}
	return func(pid int) bool { return devnode.IsBelow(pid, peer.PID) }, nil
}
