package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

const lockName = "lock"

// takeLock opens the lock file of the root dir and locks it, or takes over
// inherited, which a keeper held on. The file is never renamed or replaced: two
// instances that each lock a file of this name lock the same one.
func takeLock(dir string, inherited *sys.FD, holder int) (lock *sys.FD, lastBeat time.Time, err error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("open lock: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lock, err = lockOf(f, inherited)
	if errors.Is(err, sys.ErrLocked) {
		return nil, time.Time{}, &InUseError{Dir: dir, PID: readPID(f)}
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("lock %s: %w", path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	if st.Size() > 0 {
		lastBeat = st.ModTime()
	}
	if holder == 0 {
		holder = os.Getpid()
	}
	if err := writePID(f, holder); err != nil {
		return nil, time.Time{}, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	return lock, lastBeat, nil
}

// lockOf returns a descriptor that holds the lock of f: inherited, if it is of
// the same file, or else a duplicate of f's.
func lockOf(f *os.File, inherited *sys.FD) (*sys.FD, error) {
	if inherited == nil {
		if err := sys.TryLock(int(f.Fd())); err != nil {
			return nil, err
		}
		return sys.DupAbove(int(f.Fd()), 3)
	}
	a, err := sys.InodeOf(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	b, err := sys.InodeOf(inherited.Int())
	if err != nil {
		return nil, err
	}
	if a != b {
		return nil, errors.New("the lock descriptor handed over is of another file")
	}
	// Succeeds at once where the open file behind it holds the lock already.
	if err := sys.TryLock(inherited.Int()); err != nil {
		return nil, err
	}
	return inherited, nil
}

func writePID(f *os.File, pid int) error {
	text := strconv.Itoa(pid) + "\n"
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// readPID is the pid that the lock file names, or 0.
func readPID(f io.ReaderAt) int {
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0
	}
	return pid
}
