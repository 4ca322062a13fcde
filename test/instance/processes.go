package instance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ProcessesOf are the processes whose program lies below dir.
func ProcessesOf(dir string) []int {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		panic(err) // the pattern is ours
	}
	var pids []int
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue // it has gone, or is a kernel thread
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil && !isZombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isZombie tells whether the process has ended and its parent has not looked.
func isZombie(pid int) bool {
	state := stateOf(pid)
	return state == 0 || state == 'Z'
}

// IsStopped tells whether a signal has stopped the process.
func IsStopped(pid int) bool { return stateOf(pid) == 'T' }

// stateOf is the state of a process, 0 where there is none.
func stateOf(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The state follows the name in brackets (proc_pid_stat(5)).
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	if len(rest) == 0 {
		return 0
	}
	return rest[0]
}

// IsRunning tells whether pid is a process that has not ended.
func IsRunning(pid int) bool { return syscall.Kill(pid, 0) == nil && !isZombie(pid) }

// ChildrenOf are the running children of pid. The kernel lists those of each
// thread by themselves (proc_pid_task, children).
func ChildrenOf(pid int) []int {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		panic(err) // the pattern is ours
	}
	var pids []int
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil && !isZombie(child) {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// MountsBelow are the mount points at and below dir, innermost first.
func MountsBelow(dir string) []string {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(err) // it is always there, and none would be a claim
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		// Field 5 is the mount point (proc_pid_mountinfo(5)).
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	return points
}

// Sweep ends what is left of the instances below dir: processes, then mounts.
// It says what there was.
func Sweep(dir string) error {
	var errs []error
	// A process that is killed first may be replaced by another meanwhile.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); Pause(10 * time.Millisecond) {
		pids := ProcessesOf(dir)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			errs = append(errs, fmt.Errorf("process %d", pid))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, err)
			}
		}
	}
	for _, point := range MountsBelow(dir) {
		errs = append(errs, fmt.Errorf("mount %s", point))
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
