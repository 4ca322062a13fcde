package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/lacunafs/lacuna/internal/sys"
)

// UsersOf finds the processes that use the filesystem with that device number
// (st_dev) by an open or mapped file or a directory that they are in, and what
// Elsewhere finds. Who is left out is as for Users.
func UsersOf(dev uint64, except ...int) ([]User, error) {
	users, err := Elsewhere(dev, except...)
	if err != nil {
		return nil, err
	}
	err = eachProcess(except, func(pid int, dir string) {
		if !slices.ContainsFunc(users, func(u User) bool { return u.PID == pid }) && isOn(dir, dev) {
			users = append(users, User{PID: pid, Name: nameOf(dir)})
		}
	})
	return users, err
}

// Elsewhere finds the other mount namespaces in which the filesystem with that
// device number is mounted, by one process of each. Copies that go with a mount of this
// namespace do not count.
func Elsewhere(dev uint64, except ...int) ([]User, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("look for users: %w", err)
	}
	ours, err := List()
	if err != nil {
		return nil, err
	}
	var users []User
	namespaces := map[string]bool{own: true} // those that were looked into
	err = eachProcess(except, func(pid int, dir string) {
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || namespaces[ns] {
			return
		}
		seen, complete := mountsDevice(dir, dev, ours)
		// A process in a chroot sees only part of its namespace's mounts.
		namespaces[ns] = seen || complete
		if seen {
			users = append(users, User{PID: pid, Name: nameOf(dir), Elsewhere: true})
		}
	})
	return users, err
}

// eachProcess calls do with the processes that are neither this one nor in except.
func eachProcess(except []int, do func(pid int, dir string)) error {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for users: %w", err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err == nil && pid != os.Getpid() && !slices.Contains(except, pid) {
			do(pid, filepath.Join("/proc", p.Name()))
		}
	}
	return nil
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
		// The processes' other files may be of filesystems that do not answer.
		inode, err := sys.KnownInode(filepath.Join(dir, name))
		if err == nil && inode.Dev == dev {
			return true
		}
	}
	return false
}

// mountsDevice tells whether the filesystem is mounted where the process lives, as
// far as it sees, otherwise than as a copy of one of ours; complete: it sees its
// namespace's root.
func mountsDevice(dir string, dev uint64, ours []Mount) (seen, complete bool) {
	f, err := os.Open(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return false, false
	}
	mounts, err := parse(f)
	if errors.Join(err, f.Close()) != nil {
		return false, false
	}
	for _, m := range mounts {
		seen = seen || m.Device() == dev && !slices.ContainsFunc(ours, func(own Mount) bool { return Follows(ours, own, mounts, m) })
		complete = complete || m.Point == "/"
	}
	return seen, complete
}
