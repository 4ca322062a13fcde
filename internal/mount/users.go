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
// namespace of its own in which the file is mounted.
type User struct {
	PID  int
	Name string
	// Open are those of the files that it has open or mapped.
	Open []sys.Inode
	// Elsewhere: the file is mounted in this process's mount namespace.
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
// process and those in except left out, and one process of each other mount
// namespace in which one of them is mounted: a copy of a mount that was made
// with the namespace outlives the unmounting here. Processes that end
// meanwhile, or that this one may not look into, are passed over.
func Users(files map[sys.Inode]bool, except ...int) ([]User, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	var users []User
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	namespaces := map[string]bool{own: true} // those that were looked into
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
		elsewhere := false
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && !namespaces[ns] {
			namespaces[ns] = true
			elsewhere = mountsAny(dir, files)
		}
		if len(open) > 0 || elsewhere {
			users = append(users, User{PID: pid, Name: nameOf(dir), Open: open, Elsewhere: elsewhere})
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
			// A stat through the link raises no event.
			st, err := os.Stat(filepath.Join(dir, kind, name.Name()))
			if err != nil {
				continue // closed meanwhile
			}
			if inode := inodeOf(st); files[inode] && !slices.Contains(open, inode) {
				open = append(open, inode)
			}
		}
	}
	return open, nil
}

// mountsAny tells whether one of the files is mounted where the process lives.
func mountsAny(dir string, files map[sys.Inode]bool) bool {
	f, err := os.Open(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return false
	}
	mounts, err := parse(f)
	if errors.Join(err, f.Close()) != nil {
		return false
	}
	devices := make(map[[2]uint32]bool)
	for inode := range files {
		major, minor := inode.DeviceNumbers()
		devices[[2]uint32{major, minor}] = true
	}
	for _, m := range mounts {
		if !devices[[2]uint32{m.Major, m.Minor}] {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, "root", m.Point))
		if err == nil && files[inodeOf(st)] {
			return true
		}
	}
	return false
}

func inodeOf(st fs.FileInfo) sys.Inode {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Inode{Dev: s.Dev, Ino: s.Ino}
	}
	return sys.Inode{}
}
