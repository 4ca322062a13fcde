package image

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// failing makes the nth operation that changes what is below a directory fail in a
// process, or all from there on, as a disk does that cannot write: the call is not made,
// and returns an error.
type failing struct {
	pid   int
	dir   string
	nth   int // from 1
	on    bool
	errno syscall.Errno

	stop  chan struct{} // closed: no more is to fail
	ended chan error
	ready chan error

	// Valid once ended is done.
	seen int    // such operations
	what string // the first that failed; empty: none

	skipped map[int]bool // threads whose call is not made
	in      map[int]bool // threads that are traced
}

// Requests of ptrace that package syscall has no name for (include/uapi/linux/ptrace.h).
const (
	ptraceGetSyscallInfo = 0x420e
	ptraceSeize          = 0x4206
	ptraceInterrupt      = 0x4207
)

// callInfo is struct ptrace_syscall_info at the entry of a call.
type callInfo struct {
	op                   uint8
	_                    [3]uint8
	arch                 uint32
	instruction, pointer uint64
	nr                   uint64
	args                 [6]uint64
}

// Calls that change files, with the argument that is a descriptor of one.
var fileCalls = map[uint64]struct {
	name string
	fd   int
}{
	syscall.SYS_WRITE: {"write", 0}, syscall.SYS_PWRITE64: {"pwrite", 0}, syscall.SYS_PWRITEV: {"pwritev", 0}, 328: {"pwritev2", 0},
	syscall.SYS_FSYNC: {"fsync", 0}, syscall.SYS_FDATASYNC: {"fdatasync", 0}, syscall.SYS_SYNC_FILE_RANGE: {"sync_file_range", 0},
	syscall.SYS_FTRUNCATE: {"ftruncate", 0}, syscall.SYS_FALLOCATE: {"fallocate", 0}, 326: {"copy_file_range", 2},
}

// Calls that change names, with the argument that is one, and the directory's before it.
var nameCalls = map[uint64]struct {
	name string
	arg  int
}{
	syscall.SYS_RENAMEAT: {"rename", 3}, 316: {"rename", 3}, syscall.SYS_LINKAT: {"link", 3},
	syscall.SYS_UNLINKAT: {"unlink", 1}, syscall.SYS_MKDIRAT: {"mkdir", 1}, syscall.SYS_OPENAT: {"create", 1},
}

// failNth begins; done ends it, and then the process runs as if it had not been.
func failNth(t *testing.T, pid int, dir string, nth int, on bool, errno syscall.Errno) (f *failing, done func()) {
	t.Helper()
	f = &failing{
		pid: pid, dir: dir + "/", nth: nth, on: on, errno: errno, stop: make(chan struct{}), ended: make(chan error, 1), ready: make(chan error, 1),
		skipped: make(map[int]bool), in: make(map[int]bool),
	}
	go f.run()
	if err := <-f.ready; err != nil {
		t.Fatal(err)
	}
	over := false
	done = func() {
		if over {
			return
		}
		over = true
		close(f.stop)
		if err := <-f.ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(done)
	return f, done
}

func (f *failing) threads() (tids []int) {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", f.pid))
	for _, name := range names {
		if tid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// run traces in one thread, which ends with it: that lets all tracees go.
func (f *failing) run() {
	runtime.LockOSThread()
	err := f.seize()
	f.ready <- err
	if err == nil {
		f.ended <- f.trace()
	}
}

// seize takes hold of all threads, those that come later too.
func (f *failing) seize() error {
	for more := true; more; {
		more = false
		for _, tid := range f.threads() {
			if f.in[tid] {
				continue
			}
			err := ptrace(ptraceSeize, tid, 0, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE)
			if errors.Is(err, syscall.ESRCH) {
				continue
			}
			if errors.Is(err, syscall.EPERM) && f.isOurs(tid) {
				continue // a thread that has been cloned by one of ours
			}
			if err == nil {
				err = ptrace(ptraceInterrupt, tid, 0, 0)
			}
			if err != nil {
				return fmt.Errorf("trace thread %d of %d: %w", tid, f.pid, err)
			}
			f.in[tid], more = true, true
		}
	}
	return nil
}

// isOurs tells whether this thread traces the other.
func (f *failing) isOurs(tid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", f.pid, tid))
	return err == nil && strings.Contains(string(text), fmt.Sprintf("TracerPid:\t%d\n", syscall.Gettid()))
}

// trace attends to the threads' stops until all have been let go, or have ended. It asks
// for each thread: a wait for any would take children of this one's.
func (f *failing) trace() error {
	over := false
	for len(f.in) > 0 {
		if !over && f.isOver() {
			over = true
			for tid := range f.in {
				if err := ptrace(ptraceInterrupt, tid, 0, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("stop thread %d: %w", tid, err)
				}
			}
		}
		idle := true
		for _, tid := range slices.Collect(maps.Keys(f.in)) {
			var status syscall.WaitStatus
			got, err := syscall.Wait4(tid, &status, syscall.WALL|syscall.WNOHANG, nil)
			switch {
			case errors.Is(err, syscall.ECHILD) || got == tid && !status.Stopped():
				delete(f.in, tid) // it has ended
				continue
			case err != nil:
				return err
			case got == 0:
				continue
			}
			idle = false
			if err := f.stopped(tid, status, over); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("thread %d: %w", tid, err)
			}
		}
		if idle {
			pause := syscall.Timespec{Nsec: 50_000}
			_ = syscall.Nanosleep(&pause, nil) // a shorter one is as good
		}
	}
	return nil
}

func (f *failing) isOver() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// stopped attends to a thread's stop, and lets it go on, or for good.
func (f *failing) stopped(tid int, status syscall.WaitStatus, over bool) error {
	signal := 0
	switch sig := status.StopSignal(); {
	case sig == syscall.SIGTRAP|0x80:
		if err := f.call(tid); err != nil {
			return err
		}
	case status>>16 == 0:
		signal = int(sig)
	case status.TrapCause() == syscall.PTRACE_EVENT_CLONE:
		other, err := syscall.PtraceGetEventMsg(tid)
		if err != nil {
			return err
		}
		f.in[int(other)] = true //nolint:gosec // it is a thread's number
	}
	if over && !f.skipped[tid] {
		delete(f.in, tid)
		return ptrace(syscall.PTRACE_DETACH, tid, 0, uintptr(signal))
	}
	return syscall.PtraceSyscall(tid, signal)
}

// call attends to a stop at the entry of a call or at its exit.
func (f *failing) call(tid int) error {
	if f.skipped[tid] {
		delete(f.skipped, tid)
		return f.change(tid, func(r *syscall.PtraceRegs) { r.Rax = uint64(-int64(f.errno)) })
	}
	var info callInfo
	if err := ptrace(ptraceGetSyscallInfo, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info))); err != nil {
		return err
	}
	const entry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	if info.op != entry {
		return nil
	}
	what := f.changes(tid, info)
	if what == "" {
		return nil
	}
	if f.seen++; f.seen < f.nth || f.seen > f.nth && !f.on || f.isOver() {
		return nil
	}
	if f.skipped[tid] = true; f.what == "" {
		f.what = what
	}
	return f.change(tid, func(r *syscall.PtraceRegs) { r.Orig_rax = ^uint64(0) }) // no such call
}

func (f *failing) change(tid int, set func(*syscall.PtraceRegs)) error {
	var r syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	set(&r)
	return syscall.PtraceSetRegs(tid, &r)
}

// changes says what the call changes below the directory; empty: nothing.
func (f *failing) changes(tid int, c callInfo) string {
	if on, ok := fileCalls[c.nr]; ok {
		path := f.descriptor(int(int32(c.args[on.fd])))
		if strings.HasPrefix(path, f.dir) {
			return on.name + " " + path[len(f.dir):]
		}
		return ""
	}
	on, ok := nameCalls[c.nr]
	if !ok || c.nr == syscall.SYS_OPENAT && c.args[2]&syscall.O_CREAT == 0 {
		return ""
	}
	path := f.text(c.args[on.arg])
	if !filepath.IsAbs(path) {
		path = filepath.Join(f.descriptor(int(int32(c.args[on.arg-1]))), path)
	}
	if strings.HasPrefix(path, f.dir) {
		return on.name + " " + path[len(f.dir):]
	}
	return ""
}

// descriptor is the path of a descriptor's file.
func (f *failing) descriptor(fd int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", f.pid, fd))
	if err != nil {
		return ""
	}
	return path
}

// text is the string at an address of the process.
func (f *failing) text(at uint64) string {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", f.pid))
	if err != nil {
		return ""
	}
	defer mem.Close()
	buf := make([]byte, 4096)
	n, _ := mem.ReadAt(buf, int64(at)) //nolint:gosec // addresses of user space are positive
	path, _, ok := strings.Cut(string(buf[:n]), "\x00")
	if !ok {
		return ""
	}
	return path
}
