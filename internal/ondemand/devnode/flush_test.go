package devnode

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestFlush(t *testing.T) {
	for name, leave := range map[string]func(*bound, *raw) error{
		"daemon disconnects": func(_ *bound, c *raw) error { return c.Close() },
		"server closes":      func(b *bound, _ *raw) error { return b.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, map[string]int{"blob": 1 << 20})
			c := b.bind(t)
			handedOut := b.miss(t, "blob", 0, 4096)
			c.record()
			// These lie unread in the socket.
			var waiting []<-chan error
			for i := range int64(100) {
				waiting = append(waiting, b.miss(t, "blob", (i+1)*4096, 4096))
			}
			until(t, "all are pending", func() bool { return b.Status().Pending == 101 })
			check(t, leave(b, c))
			for _, fill := range append(waiting, handedOut) {
				if err := result(t, fill); !errors.Is(err, ondemand.ErrFlushed) {
					t.Fatal(err)
				}
			}
			if err := result(t, b.miss(t, "blob", 0, 4096)); !errors.Is(err, ErrNoDaemon) || ondemand.Errno(err) != syscall.EIO {
				t.Errorf("fill without a daemon: %v", err)
			}
			if st := b.Status(); st.Flushed != 101 || st.Pending != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestLastDoneOfALeavingDaemonCounts(t *testing.T) {
	for range 100 {
		b := serve(t, map[string]int{"blob": 8192})
		c := b.bind(t)
		fill := b.miss(t, "blob", 0, 4096)
		r := c.record()
		b.pour(t, r)
		other := b.miss(t, "blob", 4096, 4096) // unread: close is told with ECONNRESET
		until(t, "both are handed out", func() bool { return b.Status().HandedOut == 2 })
		c.say("done %d", r.ID)
		check(t, c.Close())
		check(t, result(t, fill))
		if err := result(t, other); !errors.Is(err, ondemand.ErrFlushed) {
			t.Fatal(err)
		}
	}
}

func TestFlushLetsNoRequestSlipIn(t *testing.T) {
	b := serve(t, map[string]int{"blob": 1 << 20})
	o := b.object(t, "blob")
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				if err := b.Fill(context.Background(), o.ID(), ondemand.Range{Len: 4096}); !errors.Is(err, ondemand.ErrFlushed) {
					t.Error(err)
				}
			}
		}
	}()
	for range 200 {
		check(t, b.bind(t).Close())
	}
	close(stop)
	select {
	case <-ended:
	case <-t.Context().Done():
	}
	until(t, "every fill has ended", func() bool { return b.Status().Pending == 0 })
}

func TestSocketFile(t *testing.T) {
	dir, _ := hollow(t, map[string]int{"blob": 1})
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	path := socketPath(t)
	open := func() (*Server, error) { return New(Options{Path: path, Dir: d}) }

	first, err := open()
	check(t, err)
	if _, err := open(); !errors.Is(err, ErrInUse) {
		t.Fatalf("a live socket: %v", err)
	}
	if st := first.Status(); st.PID != 0 {
		t.Error("asking whether it lives made a daemon")
	}
	check(t, first.Release()) // dead, and its file is left
	second, err := open()
	check(t, err)
	check(t, os.Remove(path))
	third, err := open()
	check(t, err)
	check(t, second.Close())
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("somebody else's socket was removed: %v", err)
	}
	check(t, third.Close())
	check(t, third.Close())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket was left: %v", err)
	}
	if err := third.Serve(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	check(t, os.WriteFile(path, []byte("precious"), 0o600))
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("a file in the way: %v", err)
	}
	if got, err := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := New(Options{Path: filepath.Join(dir, "none", "s"), Dir: d}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	dir, _ := hollow(t, map[string]int{"blob": 1})
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	b := &bound{dir: dir, socket: socketPath(t), Dir: d}
	b.Server, err = New(Options{Path: b.socket, Dir: d})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- b.Serve(ctx) }()
	c := b.bind(t)
	cancel()
	check(t, <-served)
	if _, err := c.Read(make([]byte, 300)); !errors.Is(err, io.EOF) {
		t.Errorf("daemon reads %v", err)
	}
	check(t, b.Close())
}

// heir is what a keeper would hold of a server.
type heir struct {
	listener, conn *sys.FD
	tag            string
	gone           atomic.Int32 // how often OnDisconnect was called
}

func (h *heir) options(t *testing.T) Options {
	t.Helper()
	o := Options{ConnTag: h.tag}
	l, err := net.FileListener(h.listener.File("listener"))
	check(t, err)
	o.Listener = l.(*net.UnixListener)
	if h.conn != nil {
		c, err := net.FileConn(h.conn.File("conn"))
		check(t, err)
		o.Conn = c.(*net.UnixConn)
	}
	return o
}

func TestHandOver(t *testing.T) {
	var last uint64
	next := func() uint64 { last++; return last }
	h := &heir{}
	hooks := func(o Options) Options {
		o.NextID = next
		o.OnBind = func(conn *sys.FD, tag string) {
			var err error
			h.conn, err = conn.Dup()
			check(t, err)
			h.tag = tag
		}
		o.OnDisconnect = func() { h.gone.Add(1) }
		return o
	}
	b := serveWith(t, map[string]int{"blob": 12288}, hooks(Options{}))
	c := b.bind(t)
	done := b.miss(t, "blob", 0, 4096)
	r := c.record()
	b.pour(t, r)
	c.say("done %d", r.ID)
	check(t, result(t, done))
	old := b.miss(t, "blob", 4096, 4096)
	before := c.record()

	var err error
	h.listener, err = b.ListenerFD()
	check(t, err)
	check(t, b.Release())
	result(t, old)
	b.pour(t, before) // half of what was asked is there, and no done yet
	record, err := b.Dir.Record().Dup()
	check(t, err)
	d, err := OpenDir(b.dir, record)
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	o := hooks(h.options(t))
	o.Dir = d
	b2 := &bound{dir: b.dir, source: b.source, socket: b.socket, Dir: d, Server: start(t, o)}

	obj := b2.object(t, "blob")
	if !obj.Has(ondemand.Range{Len: 4096}) || obj.Has(ondemand.Range{Off: 4096, Len: 1}) {
		t.Error("presence is not that of the incarnation before")
	}
	if st := b2.Status(); !st.Bound || st.Tag != "test" || st.PID != os.Getpid() {
		t.Errorf("status %+v", st)
	}
	again := b2.miss(t, "blob", 4096, 4096)
	after := c.record()
	if after.ID <= before.ID || after.Off != before.Off {
		t.Errorf("%+v after %+v", after, before)
	}
	c.say("done %d", before.ID) // ignored
	c.refused(syscall.EINVAL, "done 0")
	c.refused(syscall.EINVAL, "done %d", after.ID+1)
	c.refused(syscall.EBUSY, "bind")
	c.say("done %d", after.ID)
	check(t, result(t, again))
	b2.same(t, "blob", 0, 8192)
	if h.gone.Load() != 0 {
		t.Error("Release told of a disconnect")
	}
	check(t, c.Close())
	until(t, "the end is noticed", func() bool { return b2.Status().PID == 0 })
	if h.gone.Load() != 1 {
		t.Errorf("told of %d disconnects", h.gone.Load())
	}
	// On a new connection old ids are unknown.
	c = b2.bind(t)
	c.refused(syscall.EINVAL, "done %d", before.ID)
	check(t, h.conn.Close())
}

func TestInheritedConnectionThatHasEnded(t *testing.T) {
	h := &heir{}
	b := serveWith(t, map[string]int{"blob": 4096}, Options{OnBind: func(conn *sys.FD, tag string) {
		var err error
		h.conn, err = conn.Dup()
		check(t, err)
	}})
	c := b.bind(t)
	var err error
	h.listener, err = b.ListenerFD()
	check(t, err)
	check(t, b.Release())
	check(t, c.Close())
	gone := make(chan struct{}, 2)
	o := h.options(t)
	o.Dir, o.OnDisconnect = b.Dir, func() { gone <- struct{}{} }
	b.Server = start(t, o)
	if err := result(t, b.miss(t, "blob", 0, 4096)); !errors.Is(err, ondemand.ErrFlushed) {
		t.Error(err)
	}
	<-gone
	fill := func() <-chan error { c = b.bind(t); return b.miss(t, "blob", 0, 4096) }()
	r := c.record()
	b.pour(t, r)
	c.say("done %d", r.ID)
	check(t, result(t, fill))
}
