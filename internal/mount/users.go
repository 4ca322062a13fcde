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

// User is a process that has a file open or mapped, or that lives in a mount
// namespace of its own in which a filesystem is mounted.
type User struct {
	PID  int
	Name string
	// Open are those of the files that it has open or mapped.
	Open []sys.Inode
	// Elsewhere: the filesystem is mounted in this process's mount namespace.
	Elsewhere bool
}

// String is "pid (name)", and says where its mount is a copy.
func (u User) String() string {
	if u.Elsewhere {
		return fmt.Sprintf("%d (%s, in a mount namespace of its own)", u.PID, u.Name)
	}
	return fmt.Sprintf("%d (%s)", u.PID, u.Name)
}

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
		open, err := usedOf(dir, files)
		if err != nil && !passed(err) {
			return nil, fmt.Errorf("look for users: %w", err)
		}
		if len(open) > 0 {
			users = append(users, User{PID: pid, Name: nameOf(dir), Open: open})
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

// usedOf returns those of the files that the process has open or mapped. With an
// error it may have more of them.
func usedOf(dir string, files map[sys.Inode]bool) (open []sys.Inode, err error) {
	for _, kind := range []string{"fd", "map_files"} {
		names, err := os.ReadDir(filepath.Join(dir, kind))
		if err != nil {
			return open, err
		}
		for _, name := range names {
			// A stat through the link raises no event, and this one asks nobody.
			inode, err := sys.KnownInode(filepath.Join(dir, kind, name.Name()))
			if err != nil {
				continue // closed meanwhile
			}
			if files[inode] && !slices.Contains(open, inode) {
				open = append(open, inode)
			}
		}
	}
	return open, nil
}
