package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// User is a process that has a file open or mapped.
type User struct {
	PID  int
	Name string
}

// String is "pid (name)".
func (u User) String() string { return fmt.Sprintf("%d (%s)", u.PID, u.Name) }

// Users finds the processes that have one of the files open or mapped, this
// process and those in except left out. Processes that end meanwhile, or that
// this one may not look into, are passed over.
func Users(files map[sys.Inode]bool, except ...int) ([]User, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	var users []User
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || slices.Contains(except, pid) {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		uses, err := usesAny(dir, files)
		if err != nil && !passed(err) {
			return nil, fmt.Errorf("look for users: %w", err)
		}
		if uses {
			users = append(users, User{PID: pid, Name: nameOf(dir)})
		}
	}
	return users, nil
}

// passed tells whether err is only that a process has ended or is not ours to see.
func passed(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ESRCH)
}

func nameOf(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

func usesAny(dir string, files map[sys.Inode]bool) (bool, error) {
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		// A stat through the link raises no event.
		if st, err := os.Stat(filepath.Join(dir, "fd", fd.Name())); err == nil && files[inodeOf(st)] {
			return true, nil
		}
	}
	maps, err := os.ReadDir(filepath.Join(dir, "map_files"))
	if err != nil {
		return false, err
	}
	for _, m := range maps {
		if st, err := os.Stat(filepath.Join(dir, "map_files", m.Name())); err == nil && files[inodeOf(st)] {
			return true, nil
		}
	}
	return false, nil
}

func inodeOf(st fs.FileInfo) sys.Inode {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Inode{Dev: s.Dev, Ino: s.Ino}
	}
	return sys.Inode{}
}
