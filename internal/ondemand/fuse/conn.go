package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Options are the parts of a Conn. All but Init, OnInit and OnError are needed.
type Options struct {
	// Connection is an open FuseDevice, made here or in a process that died. The
	// Conn does not close it.
	Connection *sys.FD
	// Tree is what is shown.
	Tree *Tree
	// Table takes the misses.
	Table *ondemand.Table
	// Init is what OnInit was told in the process that began the connection; nil
	// where it begins here.
	Init []byte
	// OnInit is told the connection's first request before it is answered, so that
	// a later process can go on with it. An error ends Serve.
	OnInit func(request []byte) error
	// OnError is told what no reader can be told, nil: dropped.
	OnError func(error)
}

// Conn serves one FUSE filesystem.
type Conn struct {
	o        Options
	protocol *fuse.ProtocolServer
	buffers  buffers

	mu      sync.Mutex
	pending map[uint64]*pending // by the request's number
	leaving bool
	answers sync.WaitGroup
}

// maxRead is the longest read, and write, that the kernel is told of.
const maxRead = 1 << 20

// room is how much more than maxRead a request or an answer may have.
const room = 8 << 10

// readers is how many goroutines take requests. Each answers what needs no waiting
// itself, which saves a wake-up.
const readers = 2

// New makes a Conn. Serve must run for requests to be answered.
func New(o Options) *Conn {
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	if o.OnInit == nil {
		o.OnInit = func([]byte) error { return nil }
	}
	return &Conn{
		o: o, pending: make(map[uint64]*pending),
		protocol: fuse.NewProtocolServer(newAnswers(o.Tree), &fuse.MountOptions{
			MaxWrite: maxRead, MaxBackground: 64, EnableSymlinkCaching: true, EnableAcl: true, ExplicitDataCacheControl: true,
			ExtraCapabilities: fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO,
			Logger:            log.New(io.Discard, "", 0),
			PanicHandler: func(what any) fuse.Status {
				o.OnError(fmt.Errorf("answer a FUSE request: panic: %v", what))
				return fuse.EIO
			},
		}),
	}
}

// Serve answers requests until ctx ends or the filesystem is unmounted for good. What
// waits in the table is answered also after it has returned: Drain waits for that.
func (c *Conn) Serve(ctx context.Context) error {
	if c.o.Init != nil {
		if err := c.resume(); err != nil {
			return err
		}
	}
	dup, err := c.o.Connection.Dup()
	if err != nil {
		return err
	}
	file := dup.File("fuse connection")
	stop := context.AfterFunc(ctx, func() {
		// The only error is that file is closed, and then nobody waits.
		if file.SetReadDeadline(time.Unix(1, 0)) != nil {
			return
		}
	})
	conn, err := file.SyscallConn()
	ended := make(chan error, readers)
	if err == nil {
		for range readers {
			go func() { ended <- c.take(ctx, conn) }()
		}
		for range readers {
			err = errors.Join(err, <-ended)
		}
	}
	stop()
	return errors.Join(err, file.Close())
}

// Drain waits until every request that was taken has been answered. The table must be
// closed, or the requests in it end in another way.
func (c *Conn) Drain() { c.answers.Wait() }

// Leave denies what waits and every later read that misses something with
// ondemand.ErrDetached. What is present can be read until Serve ends.
func (c *Conn) Leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	for _, p := range c.pending {
		go p.done(ondemand.ErrDetached)
	}
}

// resume makes the protocol know what the process before this one agreed with the
// kernel, and asks for its unanswered requests again (FUSE_NOTIFY_RESEND, Linux 6.9).
func (c *Conn) resume() error {
	out := make([]byte, room)
	if n, code := c.protocol.HandleRequest([][]byte{c.o.Init}, [][]byte{out}); n == 0 || code != fuse.OK {
		return fmt.Errorf("go on with a FUSE connection: its first request is not one: %v", code)
	}
	err := sys.WriteFuse(c.o.Connection, resendNotice())
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("have requests sent again: %w", err)
	}
	return nil
}

// take takes requests until there are no more.
func (c *Conn) take(ctx context.Context, conn syscall.RawConn) error {
	buf := make([]byte, maxRead+room)
	for ctx.Err() == nil {
		var n int
		var err error
		waitErr := conn.Read(func(uintptr) bool {
			n, err = sys.ReadFuse(c.o.Connection, buf)
			return !errors.Is(err, syscall.EAGAIN)
		})
		if waitErr != nil && !errors.Is(waitErr, os.ErrDeadlineExceeded) {
			// The poller has an error only, of a connection whose filesystem is gone.
			_, err = sys.ReadFuse(c.o.Connection, buf)
		}
		switch {
		case errors.Is(waitErr, os.ErrDeadlineExceeded), errors.Is(err, syscall.ENODEV):
			return nil
		case waitErr != nil || err != nil:
			return errors.Join(waitErr, err)
		}
		if err := c.request(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// request begins with one request. Only what is to end Serve is an error.
func (c *Conn) request(raw []byte) error {
	q, err := parse(raw)
	if err != nil {
		return err
	}
	switch q.opcode {
	case opInit:
		if err := c.o.OnInit(append([]byte(nil), raw...)); err != nil {
			return err
		}
	case opInterrupt:
		c.interrupt(q)
		return nil
	case opRead:
		parts, err := c.o.Tree.locate(q.node, q.offset, int64(q.size))
		if err != nil {
			c.deny(q.unique, errnoOf(err))
			return nil
		}
		if lack := c.o.Tree.missing(parts); len(lack) > 0 {
			c.wait(q, lack)
			return nil
		}
	}
	c.answers.Add(1)
	defer c.answers.Done()
	c.answer(q)
	return nil
}

// answer answers a request of which all that it needs is present.
func (c *Conn) answer(q *request) {
	buf, free := c.buffers.get(q.size)
	defer free()
	n, code := c.protocol.HandleRequest([][]byte{q.raw}, [][]byte{buf})
	if code != fuse.OK {
		c.deny(q.unique, syscall.Errno(code))
		return
	}
	if n > 0 {
		c.write(buf[:n])
	}
}

// deny answers a request with an error.
func (c *Conn) deny(unique uint64, errno syscall.Errno) { c.write(denial(unique, errno)) }

func (c *Conn) write(p []byte) {
	err := sys.WriteFuse(c.o.Connection, p)
	// ENOENT: nobody waits for it any more. ENODEV: it is unmounted.
	if err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENODEV) {
		c.o.OnError(err)
	}
}
