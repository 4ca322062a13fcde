package keeper

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// family is a keeper with its workers, as their common standard output shows
// them.
type family struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string

	mu   sync.Mutex
	log  []string
	pids []int // of all processes seen
}

// patience bounds the waiting for a line.
const patience = 30 * time.Second

func startFamily(t *testing.T, path, worker string, env ...string) *family {
	t.Helper()
	f := &family{t: t, cmd: exec.Command(path), lines: make(chan string, 10000)}
	f.cmd.Env = append(os.Environ(), testRole+"=1", testWorker+"="+worker,
		"GORACE=atexit_sleep_ms=0") // which would make each exit take a second
	f.cmd.Env = append(f.cmd.Env, env...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	f.cmd.Stdout, f.cmd.Stderr = w, w
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.pids = []int{f.cmd.Process.Pid}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	go f.collect(r)
	t.Cleanup(f.cleanup)
	return f
}

var pidIn = regexp.MustCompile(`^(?:up|new keeper|event worker started:) pid=(\d+)`)

func (f *family) collect(r *os.File) {
	defer close(f.lines)
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := in.Text()
		f.mu.Lock()
		f.log = append(f.log, line)
		if m := pidIn.FindStringSubmatch(line); m != nil {
			if pid, _ := strconv.Atoi(m[1]); !slices.Contains(f.pids, pid) {
				f.pids = append(f.pids, pid)
			}
		}
		f.mu.Unlock()
		f.lines <- line
	}
	if err := r.Close(); err != nil {
		f.t.Error(err)
	}
}

// expect waits for a line that begins with prefix, passing over others.
func (f *family) expect(prefix string) string {
	f.t.Helper()
	late := time.After(patience)
	for {
		select {
		case line, ok := <-f.lines:
			if !ok {
				f.t.Fatalf("all processes ended without %q", prefix)
			}
			if strings.HasPrefix(line, prefix) {
				return line
			}
		case <-late:
			f.t.Fatalf("no line %q within %v", prefix, patience)
		}
	}
}

// expectEnd waits until every process has ended, which closes their standard
// output, and returns the lines until then.
func (f *family) expectEnd() []string {
	f.t.Helper()
	late := time.After(patience)
	var out []string
	for {
		select {
		case line, ok := <-f.lines:
			if !ok {
				return out
			}
			out = append(out, line)
		case <-late:
			f.t.Fatalf("processes left after %v", patience)
		}
	}
}

// exit is the exit status of the first keeper.
func (f *family) exit() int {
	f.t.Helper()
	err := f.cmd.Wait()
	if err != nil && f.cmd.ProcessState == nil {
		f.t.Fatal(err)
	}
	return f.cmd.ProcessState.ExitCode()
}

func (f *family) send(line string) {
	f.t.Helper()
	if _, err := fmt.Fprintln(f.stdin, line); err != nil {
		f.t.Fatal(err)
	}
}

func (f *family) signal(pid int, sig syscall.Signal) {
	f.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		f.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// field is the value of key=value in line.
func field(t *testing.T, line, key string) string {
	t.Helper()
	for _, w := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			return v
		}
	}
	t.Fatalf("no %s in %q", key, line)
	return ""
}

func number(t *testing.T, line, key string) int {
	t.Helper()
	n, err := strconv.Atoi(field(t, line, key))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// cleanup ends what is left, by pid, and fails where a zombie of ours is.
func (f *family) cleanup() {
	f.mu.Lock()
	pids := slices.Clone(f.pids)
	if f.t.Failed() {
		f.t.Logf("lines:\n%s", strings.Join(f.log, "\n"))
	}
	f.mu.Unlock()
	for _, pid := range pids {
		if ours(pid) {
			f.t.Logf("ending process %d, which the test left", pid)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				f.t.Log(err)
			}
		}
	}
	if f.cmd.ProcessState == nil {
		if err := f.cmd.Wait(); err != nil {
			f.t.Log(err)
		}
	}
	if err := f.stdin.Close(); err != nil && !strings.Contains(err.Error(), "already closed") {
		f.t.Log(err)
	}
	for range f.lines {
	}
	for _, pid := range pids {
		// What init has got is for init to reap.
		if state, parent := procState(pid); state == "Z" && parent != 1 {
			f.t.Errorf("process %d is a zombie below %d", pid, parent)
		}
	}
}

// ours tells whether pid is a living process with our environment switch.
func ours(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && strings.Contains(string(b), testRole+"=1")
}

func procState(pid int) (state string, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	words := strings.Fields(rest)
	parent, _ = strconv.Atoi(words[1])
	return words[0], parent
}

// openFiles lists what the descriptors of pid lead to.
func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range all {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, link)
	}
	slices.Sort(out)
	return out
}
