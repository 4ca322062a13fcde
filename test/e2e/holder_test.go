package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/mem"
)

// holderEnv makes the test binary a holder.
const holderEnv = "LACUNA_E2E_HOLDER"

type holderRequest struct {
	Off int64
	Len int
	Map string // read through a mapping: "normal", or "random" (madvise(2))
}

type holderReply struct {
	Data  []byte
	Errno syscall.Errno
}

// beHolder opens a file and keeps it open until standard input ends, reading
// what it is asked to.
func beHolder() {
	path := os.Getenv(holderEnv)
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		os.Exit(1)
	}
	debug.SetPanicOnFault(true)
	mappings := make(map[string][]byte)
	out, in := json.NewEncoder(os.Stdout), json.NewDecoder(os.Stdin)
	if out.Encode(holderReply{}) != nil {
		os.Exit(1)
	}
	for {
		var q holderRequest
		if in.Decode(&q) != nil {
			os.Exit(0)
		}
		var reply holderReply
		buf := make([]byte, q.Len)
		var n int
		if q.Map != "" {
			n, err = readMapped(mappings, f, q, buf)
		} else {
			n, err = f.ReadAt(buf, q.Off)
		}
		reply.Data = buf[:n]
		if err != nil && !errors.As(err, &reply.Errno) && !errors.Is(err, io.EOF) {
			os.Exit(1)
		}
		if out.Encode(reply) != nil {
			os.Exit(1)
		}
	}
}

// readMapped reads through a mapping of the whole file. SIGBUS is EFAULT here.
func readMapped(mappings map[string][]byte, f *os.File, q holderRequest, buf []byte) (n int, err error) {
	defer func() {
		if recover() != nil {
			n, err = 0, syscall.EFAULT
		}
	}()
	if mappings[q.Map] == nil {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		m, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			return 0, err
		}
		if q.Map == "random" {
			if err := syscall.Madvise(m, syscall.MADV_RANDOM); err != nil {
				return 0, err
			}
		}
		mappings[q.Map] = m
	}
	return copy(buf, mappings[q.Map][q.Off:]), nil
}

// holder is a process that has a file open.
type holder struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// hold opens path in a process of its own.
func hold(t *testing.T, path string) *holder {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{t: t, cmd: exec.Command(exe)}
	h.cmd.Env = append(os.Environ(), holderEnv+"="+path)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	h.out = json.NewDecoder(bufio.NewReader(out))
	h.reply()
	return h
}

func (h *holder) reply() holderReply {
	h.t.Helper()
	var reply holderReply
	late := time.AfterFunc(time.Minute, func() { _ = h.cmd.Process.Kill() })
	if err := h.out.Decode(&reply); err != nil {
		h.t.Fatalf("the holder does not answer: %v", err)
	}
	late.Stop()
	return reply
}

// read reads through the descriptor that is open.
func (h *holder) read(off int64, n int) holderReply {
	h.t.Helper()
	return h.ask(holderRequest{Off: off, Len: n})
}

func (h *holder) ask(q holderRequest) holderReply {
	h.t.Helper()
	if err := json.NewEncoder(h.in).Encode(q); err != nil {
		h.t.Fatal(err)
	}
	return h.reply()
}

// wantPattern reads n bytes from off and compares them.
func (h *holder) wantPattern(seed uint64, off int64, n int) {
	h.t.Helper()
	r := h.read(off, n)
	if r.Errno != 0 || !bytes.Equal(r.Data, pattern(seed, off, n)) {
		h.t.Fatalf("read [%d,+%d): %v, %d bytes, right: %v, % x", off, n, r.Errno, len(r.Data),
			bytes.Equal(r.Data, pattern(seed, off, len(r.Data))), r.Data[:min(8, len(r.Data))])
	}
}

// close closes the file.
func (h *holder) close() {
	if h.cmd.ProcessState != nil {
		return
	}
	closed := h.in.Close()
	late := time.AfterFunc(time.Minute, func() { _ = h.cmd.Process.Kill() })
	if err := errors.Join(closed, h.cmd.Wait()); err != nil && !h.t.Failed() {
		h.t.Errorf("the holder: %v", err)
	}
	late.Stop()
}

// pattern is what a file of mem.PatternAt has there.
func pattern(seed uint64, off int64, n int) []byte {
	b := make([]byte, n)
	_, _ = mem.PatternAt(seed).ReadAt(b, off) // it cannot fail
	return b
}
