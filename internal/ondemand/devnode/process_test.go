package devnode

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestParentInStat(t *testing.T) {
	for stat, want := range map[string]int{
		"7 (cat) S 6 7 7 0":              6,
		"7 (a) S 1 (b) R 9 9 9":          9,
		"7 (x y) z) S 6 7":               6,
		"7 ()) S 5 1":                    5,
		"7 (sd-pam\n) S 4 1":             4,
		"7 (cat) S":                      -1,
		"7 (cat":                         -1,
		"":                               -1,
		"7 (cat) S x 1":                  -1,
		"7 (cat) S -1 1":                 -1,
		"7 (cat) S 99999999999999999999": -1,
	} {
		got, ok := parentInStat([]byte(stat))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
}

func TestDescends(t *testing.T) {
	tree := map[int]int{2: 1, 3: 2, 4: 3, 5: 4, 9: 9, 20: 21, 21: 20}
	parent := func(pid int) (int, bool) { p, ok := tree[pid]; return p, ok }
	for pair, want := range map[[2]int]bool{
		{5, 3}: true, {3, 3}: true, {5, 2}: true, {2, 3}: false, {5, 9}: false, {7, 3}: false,
		{9, 3}: false, {20, 3}: false, {5, 1}: true,
	} {
		if got := descends(pair[0], pair[1], parent); got != want {
			t.Errorf("%d below %d: %v", pair[0], pair[1], got)
		}
	}
	// 4's number is reused by a child of 3 after 5 has been asked.
	asked := 0
	reused := func(pid int) (int, bool) {
		if pid == 5 {
			if asked++; asked > 1 {
				return 1, true
			}
			return 4, true
		}
		return parent(pid)
	}
	if descends(5, 3, reused) {
		t.Error("a chain that changed on the way counts")
	}
}

func TestIsDaemon(t *testing.T) {
	b := serve(t, map[string]int{"blob": 1})
	if b.IsDaemon(os.Getpid()) {
		t.Error("before anyone connected")
	}
	early := connect(t, b.socket)
	early.sync()
	if b.IsDaemon(os.Getpid()) {
		t.Error("before bind")
	}
	check(t, early.Close())
	c := b.bind(t)
	// A grandchild with an awkward name tells its number.
	cmd := exec.Command("sh", "-c", `sh -c 'echo $$; read x; :' ; :`)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	check(t, err)
	below, err := strconv.Atoi(strings.TrimSpace(line))
	check(t, err)
	for pid, want := range map[int]bool{
		os.Getpid(): true, cmd.Process.Pid: true, below: true, 1: false, os.Getppid(): false, 0: false, -1: false, 1 << 30: false,
	} {
		if got := b.IsDaemon(pid); got != want {
			t.Errorf("process %d: %v", pid, got)
		}
	}
	check(t, in.Close())
	check(t, cmd.Wait())
	check(t, c.Close())
	until(t, "the end is noticed", func() bool { return !b.IsDaemon(os.Getpid()) })
}

// TestDaemonThatDiesLeavingAChild: the child holds the connection open, and
// the number of the dead daemon may become any process's.
func TestDaemonThatDiesLeavingAChild(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	const program = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
for command in b"dir " + sys.argv[2].encode(), b"bind", b"sync":
    s.send(command)
s.recv(4096)
if os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
print("ready", flush=True)
os.read(0, 1)
os._exit(0)
`
	cmd := exec.Command("python3", "-c", program, b.socket, b.dir)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	check(t, err)
	fill := b.miss(t, "blob", 0, 4096)
	until(t, "it is handed out", func() bool { return b.Status().HandedOut == 1 })
	check(t, cmd.Process.Kill()) // the child lives and has the socket
	if err := result(t, fill); err == nil {
		t.Error("filled by nobody")
	}
	if b.IsDaemon(cmd.Process.Pid) {
		t.Error("a dead process is the daemon")
	}
	until(t, "the connection is free", func() bool { return b.Status().PID == 0 })
	check(t, in.Close())
	cmd.Wait()
	b.bind(t)
}

// asNobody connects as uid 65534 and returns the first message.
func asNobody(t *testing.T, socket string) string {
	t.Helper()
	const program = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
print(s.recv(4096).decode())
`
	cmd := exec.Command("/usr/bin/python3", "-c", program, socket)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
