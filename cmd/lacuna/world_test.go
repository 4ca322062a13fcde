package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

type worldKey struct{}

// world is what a script has around it.
type world struct {
	t       testing.TB
	dir     string // $WORK
	started map[string]*process
	servers map[string]*server
	holder  *process
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// end takes down what the script has left, and fails the test where that is anything.
func (w *world) end() {
	for name, p := range w.started {
		w.t.Errorf("%s still runs", name)
		p.kill()
	}
	if w.holder != nil {
		w.holder.kill()
	}
	for _, s := range w.servers {
		s.http.Close()
	}
	for _, pid := range ownProcesses(w.t, w.dir) {
		w.t.Errorf("process %d of lacuna still runs", pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			w.t.Error(err)
		}
	}
	for _, point := range mountsBelow(w.t, w.dir) {
		w.t.Errorf("%s is still mounted", point)
		if err := mount.Unmount(point, true); err != nil {
			w.t.Error(err)
		}
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Error(err)
	}
}

// ownProcesses are the workers and keepers that work below dir.
func ownProcesses(t testing.TB, dir string) (pids []int) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		env, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(env, []byte("LACUNA_ROOT="+dir+"/")) {
			continue // ended, or not ours
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func mountsBelow(t testing.TB, dir string) (points []string) {
	t.Helper()
	mounts, err := mount.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, dir+"/") {
			points = append(points, m.Point)
		}
	}
	slices.Reverse(points)
	return points
}

// server is a server on loopback that can go away.
type server struct {
	*sourcetest.Server
	http    *httptest.Server
	latency time.Duration
	rate    int64
}

// option changes the server's behaviour.
func (s *server) option(ts *testscript.TestScript, option string) {
	name, value, _ := strings.Cut(option, "=")
	switch name {
	case "gone": // nobody listens any more
		s.http.CloseClientConnections()
		s.http.Close()
	case "right":
		s.Always(nil)
	case "no-ranges":
		s.Always(sourcetest.Whole)
	case "no-length":
		s.Always(sourcetest.NoLength)
	case "no-validator":
		s.SetETag("")
		s.SetModTime(time.Time{})
	case "etag":
		s.SetETag(value)
	case "status":
		code, err := strconv.Atoi(value)
		ts.Check(err)
		s.Always(sourcetest.Status(code, ""))
	case "login":
		user, password, _ := strings.Cut(value, ":")
		s.SetLogin(user, password)
	case "rate": // bytes a second; 0: no limit
		n, err := strconv.ParseInt(value, 10, 64)
		ts.Check(err)
		s.rate = n
		s.Throttle(s.latency, s.rate)
	case "latency":
		d, err := time.ParseDuration(value)
		ts.Check(err)
		s.latency = d
		s.Throttle(s.latency, s.rate)
	default:
		ts.Fatalf("server has no option %q", option)
	}
}

// process is a command that runs beside the script.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once Wait has returned
}

// kill ends it and waits; errors mean that it has ended.
func (p *process) kill() {
	if p.cmd.Process.Signal(syscall.SIGINT) == nil {
		select {
		case <-p.ended:
			return
		case <-time.After(10 * time.Second):
		}
	}
	if p.cmd.Process.Kill() == nil {
		<-p.ended
	}
}

// environ is the script's environment as far as the program looks at it.
func environ(ts *testscript.TestScript) (env []string) {
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "GORACE", "GOCOVERDIR", "GOTRACEBACK",
		"LACUNA_ROOT", "LACUNA_CONFIG", "LACUNA_SOCKET", "LACUNA_LOG_FORMAT", "LACUNA_VERBOSE", "LACUNA_DEADLINE",
	} {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}
