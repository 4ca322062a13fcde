package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// UsersOf finds the processes that use the filesystem with that device number
// (st_dev): by an open or mapped file, a directory that they are in, or a mount
// of it in a mount namespace of their own. Who is left out is as for Users.
func UsersOf(dev uint64, except ...int) ([]User, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	var users []User
	namespaces := map[string]bool{own: true} // those that were looked into
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || slices.Contains(except, pid) {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		elsewhere := false
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err == nil && !namespaces[ns] {
			namespaces[ns] = true
			elsewhere = mountsDevice(dir, dev)
		}
		if elsewhere || isOn(dir, dev) {
			users = append(users, User{PID: pid, Name: nameOf(dir), Elsewhere: elsewhere})
		}
	}
	return users, nil
}

// isOn tells whether the process has something of the filesystem open.
func isOn(dir string, dev uint64) bool {
	names := []string{"cwd", "root", "exe"}
	for _, kind := range []string{"fd", "map_files"} {
		entries, err := os.ReadDir(filepath.Join(dir, kind))
		if err != nil {
			continue // it has ended, or is not ours to see
		}
		for _, e := range entries {
			names = append(names, filepath.Join(kind, e.Name()))
		}
	}
	for _, name := range names {
		st, err := os.Stat(filepath.Join(dir, name))
		if err == nil && inodeOf(st).Dev == dev {
			return true
		}
	}
	return false
}

// mountsDevice tells whether the filesystem is mounted where the process lives.
func mountsDevice(dir string, dev uint64) bool {
	f, err := os.Open(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return false
	}
	mounts, err := parse(f)
	if errors.Join(err, f.Close()) != nil {
		return false
	}
	major, minor := sys.Inode{Dev: dev}.DeviceNumbers()
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Major == major && m.Minor == minor })
}

// DeviceOf is the device number of the filesystem that path lies on.
func DeviceOf(path string) (uint64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat %s: no device number", path)
	}
	return s.Dev, nil
}
