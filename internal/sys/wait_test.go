package sys

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// pipe is a pipe whose ends close with the test.
func pipe(t testing.TB) (r, w *FD) {
	t.Helper()
	var p [2]int
	ok(t, unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	r, w = NewFD(p[0]), NewFD(p[1])
	t.Cleanup(func() { ok(t, CloseAll(r, w)) })
	return r, w
}

func TestPollSaysWhichIsReady(t *testing.T) {
	r, w := pipe(t)
	waker, err := NewWaker()
	ok(t, err)
	defer func() { ok(t, waker.Close()) }()
	type result struct {
		readable, woken bool
		err             error
	}
	results := make(chan result)
	poll := func() {
		readable, woken, err := Poll(r, waker)
		results <- result{readable, woken, err}
	}
	for range 3 {
		go poll()
		ok(t, waker.Wake())
		ok(t, waker.Wake())
		if got := <-results; got != (result{false, true, nil}) {
			t.Fatalf("woken: %+v", got)
		}
		ok(t, waker.Reset())
		ok(t, waker.Reset())
		go poll()
		_, err = unix.Write(w.Int(), []byte{1})
		ok(t, err)
		if got := <-results; got != (result{true, false, nil}) {
			t.Fatalf("readable: %+v", got)
		}
		if n, err := Read(r, make([]byte, 10)); n != 1 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	ok(t, w.Close())
	go poll()
	if got := <-results; !got.readable || got.err != nil {
		t.Errorf("end of file: %+v", got)
	}
}

func TestWaitReadable(t *testing.T) {
	r, w := pipe(t)
	if got, err := WaitReadable(r, 0); got || err != nil {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := Read(r, make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("read nothing: %v", err)
	}
	_, err := unix.Write(w.Int(), []byte{1})
	ok(t, err)
	if got, err := WaitReadable(r, -1); !got || err != nil {
		t.Errorf("a byte: %v, %v", got, err)
	}
}

// sockets are a connected pair.
func sockets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	ok(t, err)
	dialled, err := net.Dial("unix", path)
	ok(t, err)
	accepted, err := l.Accept()
	ok(t, err)
	ok(t, l.Close())
	t.Cleanup(func() { ok(t, CloseAll(dialled, accepted)) })
	return dialled.(*net.UnixConn), accepted.(*net.UnixConn)
}

func TestPeer(t *testing.T) {
	a, b := sockets(t)
	want := Peer{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid()}
	for _, c := range []*net.UnixConn{a, b} {
		if got, err := PeerOf(c); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	process, err := PeerProcess(b)
	ok(t, err)
	if ended, err := WaitReadable(process, 0); ended || err != nil {
		t.Errorf("this process has ended: %v, %v", ended, err)
	}
	ok(t, process.Close())
	if gone, err := PeerHungUp(b); gone || err != nil {
		t.Errorf("hung up: %v, %v", gone, err)
	}
	ok(t, a.CloseWrite())
	if gone, err := PeerHungUp(b); !gone || err != nil {
		t.Errorf("hung up: %v, %v", gone, err)
	}
}

func TestParseControl(t *testing.T) {
	a, b := sockets(t)
	ok(t, PassCredentials(b))
	f := tempFile(t)
	for _, n := range []int{0, 1, 3} {
		var rights []byte
		if n > 0 {
			raws := make([]int, n)
			for i := range raws {
				raws[i] = int(f.Fd())
			}
			rights = unix.UnixRights(raws...)
		}
		_, _, err := a.WriteMsgUnix([]byte("x"), rights, nil)
		ok(t, err)
		buf, oob := make([]byte, 10), make([]byte, 500)
		_, oobn, _, _, err := b.ReadMsgUnix(buf, oob)
		ok(t, err)
		got, err := ParseControl(oob[:oobn])
		if err != nil || len(got.FDs) != n || got.PID != os.Getpid() {
			t.Errorf("%d descriptors: %+v, %v", n, got, err)
		}
		want, err := InodeOf(int(f.Fd()))
		ok(t, err)
		for _, fd := range got.FDs {
			if inode, err := InodeOf(fd.Int()); err != nil || inode != want {
				t.Errorf("%+v, %v", inode, err)
			}
			ok(t, fd.Close())
		}
	}
	if got, err := ParseControl(nil); err != nil || len(got.FDs) != 0 || got.PID != 0 {
		t.Errorf("nothing: %+v, %v", got, err)
	}
	if _, err := ParseControl(make([]byte, 40)); err == nil {
		t.Error("zeros were parsed")
	}
}

func TestDatagramsCarryDescriptorsAndTheirSender(t *testing.T) {
	address := filepath.Join(t.TempDir(), "d")
	socket, err := ListenDatagram(address)
	ok(t, err)
	defer func() { ok(t, socket.Close()) }()
	if _, err := ReceiveDatagram(socket, make([]byte, 10)); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("nothing: %v", err)
	}
	f := tempFile(t)
	for range 2 {
		ok(t, SendDatagram(address, []byte("payload"), []int{int(f.Fd())}, 1))
	}
	if pid, err := PeekSender(socket); err != nil || pid != os.Getpid() {
		t.Errorf("sender %d, %v", pid, err)
	}
	d, err := ReceiveDatagram(socket, make([]byte, 4))
	if err != nil || string(d.Bytes) != "payl" || !d.Truncated || len(d.FDs) != 1 || d.PID != os.Getpid() {
		t.Errorf("%+v, %v", d, err)
	}
	ok(t, d.FDs[0].Close())
	ok(t, DropDatagram(socket))
	if _, err := ReceiveDatagram(socket, make([]byte, 10)); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("after dropping: %v", err)
	}
	if err := SendDatagram(address+"-absent", nil, nil, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("send to nobody: %v", err)
	}
}

func TestProcessDescriptor(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	process, err := OpenProcess(cmd.Process.Pid)
	ok(t, err)
	if ended, err := WaitReadable(process, 0); ended || err != nil {
		t.Errorf("ended: %v, %v", ended, err)
	}
	ok(t, SignalProcess(process, syscall.SIGKILL))
	if ended, err := WaitReadable(process, -1); !ended || err != nil {
		t.Errorf("ended: %v, %v", ended, err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("wait: %v", err)
	}
	if err := SignalProcess(process, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("signal to the dead: %v", err)
	}
	if err := in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	ok(t, process.Close())
	if _, err := OpenProcess(cmd.Process.Pid); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("open the dead: %v", err)
	}
}

func TestMonotonicGoesOn(t *testing.T) {
	if a, b := Monotonic(), Monotonic(); a <= 0 || b < a {
		t.Errorf("%v, then %v", a, b)
	}
}

func TestBindReadOnly(t *testing.T) {
	f := tempFile(t)
	_, err := f.WriteString("content")
	ok(t, err)
	target := filepath.Join(t.TempDir(), "target")
	ok(t, os.WriteFile(target, []byte("below"), 0o600))
	source, err := OpenPath(f.Name())
	ok(t, err)
	ok(t, BindReadOnly(source, target))
	if b, err := os.ReadFile(target); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.OpenFile(target, os.O_WRONLY, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	user, err := os.Open(target)
	ok(t, err)
	if err := Unmount(target, false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unmount while it is open: %v", err)
	}
	ok(t, BindReadOnly(source, target)) // a second one on top
	ok(t, Unmount(target, false))
	ok(t, Unmount(target, true))
	if b, err := os.ReadFile(target); err != nil || string(b) != "below" {
		t.Errorf("after the lazy unmount: %q, %v", b, err)
	}
	if _, err := user.Read(make([]byte, 3)); err != nil {
		t.Errorf("who had it open: %v", err)
	}
	ok(t, CloseAll(user, source))
	if err := Unmount(target, false); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unmount of what is not mounted: %v", err)
	}
	source, err = OpenPath(f.Name())
	ok(t, err)
	if err := BindReadOnly(source, target+"-absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("onto what is absent: %v", err)
	}
	if err := BindReadOnly(source, t.TempDir()); err == nil {
		t.Error("a file was mounted onto a directory")
	}
	ok(t, source.Close())
}
