package cache

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Holder is the process that has the cache root dir, as its lock file names it, or
// 0 where nobody has it. The answer may be untrue as soon as it is given. The lock
// is looked at and not tried: whoever starts at that moment would find it taken.
func Holder(dir string) (pid int, err error) {
	f, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open lock: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at the lock of %s: %w", dir, err)
	}
	inode, ok := st.Sys().(*syscall.Stat_t)
	pid = readPID(f)
	if !ok || pid == 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return 0, nil
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, fmt.Errorf("look at the lock of %s: %w", dir, err)
	}
	if !flocked(locks, inode.Ino) {
		return 0, nil
	}
	return pid, nil
}

// flocked tells whether a list of locks has a whole-file one of the inode. Which
// filesystem it is on is not compared: btrfs gives another device to stat
// (fs/locks.c, lock_get_status: "1: FLOCK  ADVISORY  WRITE 708 08:01:13 0 EOF").
func flocked(locks []byte, inode uint64) bool {
	lines := bufio.NewScanner(bytes.NewReader(locks))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		parts := strings.Split(fields[5], ":")
		if n, err := strconv.ParseUint(parts[len(parts)-1], 10, 64); err == nil && n == inode {
			return true
		}
	}
	return false
}
