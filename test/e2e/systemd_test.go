package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

// descriptorStore is systemd's side of sd_notify(3) and sd_listen_fds(3).
type descriptorStore struct {
	t    *testing.T
	path string
	conn *net.UnixConn
	done chan struct{}

	mu    sync.Mutex
	names []string
	files []*os.File
	ready int // READY=1 so far
}

func newDescriptorStore(t *testing.T, dir string) *descriptorStore {
	t.Helper()
	s := &descriptorStore{t: t, path: filepath.Join(dir, "notify"), done: make(chan struct{})}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	go s.receive()
	t.Cleanup(s.close)
	return s
}

// close lets go of everything, once. Nothing may be served any more.
func (s *descriptorStore) close() {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.t.Error(err)
	}
	<-s.done
	s.keep(func(string) bool { return false })
}

func (s *descriptorStore) receive() {
	defer close(s.done)
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, m, _, _, err := s.conn.ReadMsgUnix(text, rights)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.t.Error(err)
			}
			return
		}
		s.take(string(text[:n]), rights[:m])
	}
}

// take does what one message asks for.
func (s *descriptorStore) take(text string, rights []byte) {
	var files []*os.File
	if len(rights) > 0 {
		messages, err := syscall.ParseSocketControlMessage(rights)
		if err != nil {
			s.t.Error(err)
		}
		for _, m := range messages {
			raw, err := syscall.ParseUnixRights(&m)
			if err != nil {
				continue // credentials
			}
			for _, fd := range raw {
				syscall.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[key] = value
	}
	s.mu.Lock()
	if fields["READY"] == "1" {
		s.ready++
	}
	if fields["FDSTORE"] == "1" {
		for _, f := range files {
			s.names, s.files = append(s.names, fields["FDNAME"]), append(s.files, f)
		}
		files = nil
	}
	s.mu.Unlock()
	if fields["FDSTOREREMOVE"] == "1" {
		s.keep(func(name string) bool { return name != fields["FDNAME"] })
	}
	for _, f := range files { // a barrier's
		if err := f.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

// keep closes the others.
func (s *descriptorStore) keep(which func(name string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	var files []*os.File
	for n, f := range s.files {
		if which(s.names[n]) {
			names, files = append(names, s.names[n]), append(files, f)
		} else if err := f.Close(); err != nil {
			s.t.Error(err)
		}
	}
	s.names, s.files = names, files
}

// start starts the unit's process with all that is stored, newest first, and waits
// until it is ready.
func (s *descriptorStore) start(i *instance.Instance) {
	s.t.Helper()
	program := i.Command(context.Background(), "daemon", "--keeper", "systemd")
	// LISTEN_PID is the number of the process that the shell becomes.
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, program.Args...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.path)
	before := s.hand(i, cmd)
	instance.Eventually(s.t, 30*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ready == before {
			return errors.New("it is not ready")
		}
		return nil
	})
}

// hand starts cmd with all that is stored, and returns how often something was
// ready before.
func (s *descriptorStore) hand(i *instance.Instance, cmd *exec.Cmd) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n := len(s.files) - 1; n >= 0; n-- {
		names, cmd.ExtraFiles = append(names, s.names[n]), append(cmd.ExtraFiles, s.files[n])
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	before := s.ready
	i.StartCommand(cmd)
	return before
}

// systemd as the keeper: a worker that is killed is started again with what it
// has stored, and a reader that waits meanwhile gets its bytes.
func TestSystemdKeepsReadersAcrossWorkers(t *testing.T) {
	a := newAttached(t, "")
	s := newDescriptorStore(t, a.Dir)
	s.start(a.Instance)
	a.Lacuna("attach", a.server.URL(), a.file)
	a.wantMissing()
	h := hold(t, a.file)
	for n, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGHUP, syscall.SIGKILL} {
		a.server.Throttle(time.Hour, 0)
		off := a.missing()
		var pending []<-chan ondemandtest.Result
		for k := range 4 {
			pending = append(pending, a.reader.Start(a.file, off+int64(k)*4096, 10000))
		}
		instance.Eventually(t, 20*time.Second, func() error {
			if s := a.Status(); s.Requests.Pending == 0 {
				return errors.New("no read is pending")
			}
			return nil
		})
		a.Signal(sig)
		<-a.Ended
		a.server.Throttle(0, 0)
		if st := a.Keeper.ProcessState; sig == syscall.SIGHUP && !st.Success() {
			t.Errorf("it was to hand over, and ended with %v", st)
		}
		s.start(a.Instance)
		for k, c := range pending {
			select {
			case r := <-c:
				if at := off + int64(k)*4096; r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, at, 10000)) {
					t.Errorf("round %d, reader %d: %v, %d bytes", n, k, r.Errno, len(r.Data))
				}
			case <-time.After(60 * time.Second):
				t.Fatalf("round %d: reader %d sleeps on", n, k)
			}
		}
		h.wantPattern(stormSeed, off, 10000)
	}
	h.close()
	a.Check()
	a.Stop()
	a.wantGone()
	s.mu.Lock()
	if len(s.names) > 0 {
		t.Errorf("still stored: %v", s.names)
	}
	s.mu.Unlock()
}
