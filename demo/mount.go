package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mounted is a `lacuna mount` in the foreground.
type mounted struct {
	cmd   *exec.Cmd
	dir   string
	ended chan error
}

// mount runs `lacuna mount` and returns when it is ready. Its cache is its own, and empty.
func (d *demo) mount(ctx context.Context, ref, dir string) (*mounted, error) {
	m := &mounted{dir: dir, ended: make(chan error, 1)}
	m.cmd = exec.Command(d.lacuna, "--root", dir+".cache", "mount", "--foreground", ref, dir)
	// Ctrl-C is for the demo, which ends it in its turn.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	m.cmd.Stderr = os.Stderr
	// The keeper's children have standard output too, so its end says nothing.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stdout = w
	if err := errors.Join(m.cmd.Start(), w.Close()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	ready := make(chan bool, 1)
	go func() {
		text, err := bufio.NewReader(r).ReadString('\n')
		ready <- err == nil && text == "ready\n"
	}()
	go func() { m.ended <- m.cmd.Wait() }()
	select {
	case ok := <-ready:
		if err := r.Close(); err != nil || ok {
			return m, err
		}
		if err := <-m.ended; err != nil {
			return nil, fmt.Errorf("lacuna mount: %w", err)
		}
		return nil, errors.New("lacuna mount ended before it was ready")
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), m.unmount(), r.Close())
	}
}

// unmount ends it, which unmounts, and sees that it has.
func (m *mounted) unmount() error {
	// The second time it does not wait for those who use the mount.
	for range 2 {
		if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end lacuna mount: %w", err)
		}
		select {
		case err := <-m.ended:
			if err != nil {
				return fmt.Errorf("lacuna mount: %w", err)
			}
			if left := mountsBelow(m.dir); len(left) > 0 {
				return fmt.Errorf("%s is still mounted", left[0])
			}
			return nil
		case <-time.After(10 * time.Second):
		}
	}
	return errors.New("lacuna mount does not end")
}

// sweep ends processes and mounts below dir, of which there are none unless something
// went wrong; it says what there was.
func sweep(dir string) error {
	var errs []error
	for range 100 { // one that is killed may be replaced by another
		pids := processesOf(dir)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			errs = append(errs, fmt.Errorf("process %d had to be killed", pid))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, err)
			}
		}
		wait(context.Background(), 20*time.Millisecond)
	}
	for _, point := range mountsBelow(dir) {
		errs = append(errs, fmt.Errorf("%s had to be unmounted", point))
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// processesOf are the processes whose program lies below dir.
func processesOf(dir string) (pids []int) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil { // the pattern is right
		panic(fmt.Sprintf("demo: internal error: %v", err))
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue // it has gone, or is a kernel thread
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mountsBelow are the mount points at and below dir, innermost first.
func mountsBelow(dir string) (points []string) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for text := range strings.Lines(string(info)) {
		// Field 5 is the mount point (proc_pid_mountinfo(5)).
		if f := strings.Fields(text); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(points)))
	return points
}

// within runs a program of the image with the mount as its root. It is chroot(8)
// that executes it: between fork and exec a Go program can stop as a whole, which this one
// must not as long as the kernel waits for what its registry sends.
func (m *mounted) within(ctx context.Context, args ...string) (string, error) {
	program, err := exec.LookPath("chroot")
	if err != nil {
		program = "/usr/sbin/chroot" // sbin is not in everybody's PATH
	}
	cmd := exec.CommandContext(ctx, program, append([]string{m.dir}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "GOROOT=/usr/local/go", "LC_ALL=C"}
	return output(group(cmd))
}

// output runs cmd and returns what it says, without the last line's end.
func output(cmd *exec.Cmd) (string, error) {
	var told strings.Builder
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, told.String())
	}
	return strings.TrimSpace(string(out)), nil
}
