// Package ondemandtest is the conformance suite of front ends: every sentence of
// the contracts in package ondemand, checked through real reads of real files.
//
// Reads come from a child process, because a front end lets the events of its
// own process through: the child is the test binary again, started by Main.
package ondemandtest

import (
	"bufio"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readerEnv makes the test binary a reader.
const readerEnv = "LACUNA_TEST_READER"

// BeReader makes this process a reader where StartReader has started it, and
// returns only where it has not. A TestMain calls it first.
func BeReader() {
	if os.Getenv(readerEnv) == "" {
		return
	}
	if err := serveReads(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type readRequest struct {
	ID   uint64
	Op   string // "read", "mmap", "truncate" to Off
	Path string
	Off  int64
	Len  int
}

type readReply struct {
	ID    uint64
	Errno syscall.Errno
	Err   string
	Data  []byte
}

// replyHeader is what a reply begins with; Text bytes of Err and Data bytes
// of Data follow. Encoding the data as gob does is slow under the race detector.
type replyHeader struct {
	ID                uint64
	Errno, Text, Data uint32
}

func (r readReply) send(w io.Writer) error {
	h := replyHeader{r.ID, uint32(r.Errno), uint32(len(r.Err)), uint32(len(r.Data))}
	b, err := binary.Append(nil, binary.NativeEndian, h)
	if err != nil {
		return err
	}
	_, err = w.Write(append(append(b, r.Err...), r.Data...))
	return err
}

func receiveReply(in io.Reader) (readReply, error) {
	var h replyHeader
	if err := binary.Read(in, binary.NativeEndian, &h); err != nil {
		return readReply{}, err
	}
	b := make([]byte, h.Text+h.Data)
	_, err := io.ReadFull(in, b)
	return readReply{h.ID, syscall.Errno(h.Errno), string(b[:h.Text]), b[h.Text:]}, err
}

// Reader is a process that reads files.
type Reader struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu      sync.Mutex
	enc     *gob.Encoder
	nextID  uint64
	pending map[uint64]chan readReply
	gone    bool
	done    chan struct{}
}

// StartReader starts a reader that ends with the test.
func StartReader(t testing.TB) *Reader {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), readerEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &Reader{
		cmd: cmd, in: in, enc: gob.NewEncoder(in),
		pending: make(map[uint64]chan readReply), done: make(chan struct{}),
	}
	go r.receive(out)
	t.Cleanup(r.Kill)
	return r
}

// PID is the reader's process id.
func (r *Reader) PID() int { return r.cmd.Process.Pid }

// Asleep is how many of its threads sleep in a read.
func (r *Reader) Asleep() (n int) {
	calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", r.PID()))
	if err != nil {
		panic(err)
	}
	for _, name := range calls {
		// A thread that has ended since is not asleep.
		if call, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(call), fmt.Sprintf("%d ", syscall.SYS_PREAD64)) {
			n++
		}
	}
	return n
}

func (r *Reader) receive(out io.Reader) {
	defer close(r.done)
	for in := bufio.NewReader(out); ; {
		reply, err := receiveReply(in)
		if err != nil {
			break
		}
		r.mu.Lock()
		c := r.pending[reply.ID]
		delete(r.pending, reply.ID)
		r.mu.Unlock()
		c <- reply
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	for id, c := range r.pending {
		c <- readReply{ID: id, Err: "reader is gone"}
	}
	r.pending = nil
}

// Kill ends the reader with SIGKILL, also while it sleeps in a read.
func (r *Reader) Kill() {
	select {
	case <-r.done:
		return
	default:
	}
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(err)
	}
	<-r.done
	// The status is that of a killed process; only its end matters.
	_ = r.cmd.Wait()
}

// Result is what a read gave.
type Result struct {
	Data  []byte
	Errno syscall.Errno // 0: the read succeeded
	Err   error         // the reader could not even try
}

// Start begins a read of n bytes from off; the channel gets its result.
func (r *Reader) Start(path string, off int64, n int) <-chan Result {
	return r.start("read", path, off, n)
}

// patience is how long Read waits, far beyond every deadline: a read that never ends
// is to fail its test, which then cleans up, and not the whole run.
const patience = 3 * time.Minute

// Read reads n bytes from off; fewer at the end of the file.
func (r *Reader) Read(path string, off int64, n int) Result {
	select {
	case result := <-r.Start(path, off, n):
		return result
	case <-time.After(patience):
		return Result{Err: fmt.Errorf("the read at %d has not ended after %v", off, patience)}
	}
}

// Mmap maps n bytes from off and copies them out.
func (r *Reader) Mmap(path string, off int64, n int) Result {
	return <-r.start("mmap", path, off, n)
}

// Truncate opens the file for writing and sets its length.
func (r *Reader) Truncate(path string, size int64) Result {
	return <-r.start("truncate", path, size, 0)
}

func (r *Reader) start(op, path string, off int64, n int) <-chan Result {
	result := make(chan Result, 1)
	reply := make(chan readReply, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		result <- Result{Err: errors.New("reader is gone")}
		return result
	}
	r.nextID++
	r.pending[r.nextID] = reply
	go func() {
		got := <-reply
		res := Result{Data: got.Data, Errno: got.Errno}
		if got.Err != "" {
			res.Err = errors.New(got.Err)
		}
		result <- res
	}()
	if err := r.enc.Encode(readRequest{ID: r.nextID, Op: op, Path: path, Off: off, Len: n}); err != nil {
		delete(r.pending, r.nextID)
		reply <- readReply{Err: err.Error()}
	}
	return result
}

func serveReads(in io.Reader, out io.Writer) error {
	dec := gob.NewDecoder(in)
	var mu sync.Mutex
	for {
		var q readRequest
		if err := dec.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		go func() {
			reply := doRead(q)
			mu.Lock()
			defer mu.Unlock()
			if err := reply.send(out); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

func doRead(q readRequest) readReply {
	reply := readReply{ID: q.ID}
	flags := os.O_RDONLY
	if q.Op == "truncate" {
		flags = os.O_WRONLY
	}
	f, err := os.OpenFile(q.Path, flags, 0)
	if err != nil {
		reply.Err = err.Error()
		return reply
	}
	defer f.Close()
	switch q.Op {
	case "truncate":
		if err := f.Truncate(q.Off); err != nil && !errors.As(err, &reply.Errno) {
			reply.Err = err.Error()
		}
		return reply
	case "mmap":
		data, err := syscall.Mmap(int(f.Fd()), q.Off, q.Len, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			errors.As(err, &reply.Errno)
			return reply
		}
		reply.Data = append([]byte(nil), data...)
		if err := syscall.Munmap(data); err != nil {
			reply.Err = err.Error()
		}
		return reply
	}
	buf := make([]byte, q.Len)
	n, err := f.ReadAt(buf, q.Off)
	reply.Data = buf[:n]
	if err != nil && !errors.Is(err, io.EOF) && !errors.As(err, &reply.Errno) {
		reply.Err = err.Error()
	}
	return reply
}
