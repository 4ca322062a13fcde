package devnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

// patience is how long anything here may take before it counts as hanging.
const patience = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bound is a served directory with its server.
type bound struct {
	dir, source, socket string
	Dir                 *Dir
	*Server
}

// content is the bytes that the file named so should have.
func content(name string, size int) []byte {
	seed := [32]byte{}
	copy(seed[:], name)
	b := make([]byte, size)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// hollow makes a source directory with the files, and a directory with holes
// of the same sizes. The source of a file above 16 MiB is all zeros.
func hollow(t *testing.T, sizes map[string]int) (dir, source string) {
	t.Helper()
	dir, source = t.TempDir(), t.TempDir()
	for name, size := range sizes {
		if size > 16<<20 {
			makeHole(t, filepath.Join(source, name), size)
		} else {
			check(t, os.WriteFile(filepath.Join(source, name), content(name, size), 0o600))
		}
		makeHole(t, filepath.Join(dir, name), size)
	}
	return dir, source
}

func makeHole(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(size)); err != nil {
		t.Fatal(err)
	}
}

// socketPath is short: sun_path has 108 bytes, and names of tests are long.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// serve starts a server of files with these sizes and stops it with the test.
func serve(t *testing.T, sizes map[string]int) *bound {
	t.Helper()
	return serveWith(t, sizes, Options{})
}

func serveWith(t *testing.T, sizes map[string]int, o Options) *bound {
	t.Helper()
	b := &bound{socket: socketPath(t)}
	b.dir, b.source = hollow(t, sizes)
	d, err := OpenDir(b.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, d.Close()) })
	b.Dir = d
	o.Path, o.Dir = b.socket, d
	if o.OnError == nil {
		o.OnError = func(err error) { t.Error("reported:", err) }
	}
	b.Server = start(t, o)
	return b
}

// start runs a server until the end of the test.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		check(t, s.Close())
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// raw is a daemon that speaks the protocol by hand.
type raw struct {
	t *testing.T
	*net.UnixConn
}

func connect(t *testing.T, socket string) *raw {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	check(t, c.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { c.Close() })
	return &raw{t, c}
}

// bind connects and binds.
func (b *bound) bind(t *testing.T) *raw {
	t.Helper()
	c := connect(t, b.socket)
	c.say("dir %s", b.dir)
	c.say("tag test")
	c.say("bind")
	c.say("sync")
	for msg := c.hear(); msg != "ok sync"; msg = c.hear() {
		if len(msg) != proto.RecordSize {
			t.Fatalf("bind: %q", msg)
		}
	}
	return c
}

func (c *raw) say(format string, args ...any) {
	c.t.Helper()
	_, err := fmt.Fprintf(c, format, args...)
	check(c.t, err)
}

// hear returns the next message.
func (c *raw) hear() string {
	c.t.Helper()
	buf := make([]byte, 8192)
	n, err := c.Read(buf)
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return string(buf[:n])
}

func (c *raw) sync() {
	c.t.Helper()
	c.say("sync")
	if got := c.hear(); got != "ok sync" {
		c.t.Fatalf("answer %q instead of ok sync", got)
	}
}

// record returns the next message, which must be a record.
func (c *raw) record() proto.Record {
	c.t.Helper()
	r, err := proto.ParseRecord([]byte(c.hear()))
	check(c.t, err)
	return r
}

// refused sends a command and wants it refused with errno.
func (c *raw) refused(errno syscall.Errno, format string, args ...any) *proto.RefusedError {
	c.t.Helper()
	c.say(format, args...)
	return c.hearRefusal(errno)
}

func (c *raw) hearRefusal(errno syscall.Errno) *proto.RefusedError {
	c.t.Helper()
	msg := c.hear()
	a, err := proto.ParseAnswer([]byte(msg))
	if err != nil || a.Refused == nil || a.Refused.Errno != errno {
		c.t.Fatalf("answer %q, want errno %d", msg, int(errno))
	}
	if len(msg) >= proto.RecordSize || !strings.HasPrefix(msg, "error ") {
		c.t.Fatalf("answer %q: wrong form", msg)
	}
	return a.Refused
}

// pour writes the wanted bytes as a daemon does, by path.
func (b *bound) pour(t *testing.T, r proto.Record) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, r.Path), os.O_WRONLY, 0)
	check(t, err)
	defer f.Close()
	src, err := os.ReadFile(filepath.Join(b.source, r.Path))
	check(t, err)
	_, err = f.WriteAt(src[r.Off:r.Off+r.Len], int64(r.Off))
	check(t, err)
}

// object finds the file's object.
func (b *bound) object(t *testing.T, leaf string) *Object {
	t.Helper()
	for _, o := range b.Dir.Objects() {
		if o.Leaf() == leaf {
			return o
		}
	}
	t.Fatalf("no object for %s", leaf)
	return nil
}

// miss starts a Fill and returns where its error will be.
func (b *bound) miss(t *testing.T, leaf string, off, n int64) <-chan error {
	t.Helper()
	return b.missContext(t, context.Background(), leaf, off, n)
}

func (b *bound) missContext(t *testing.T, ctx context.Context, leaf string, off, n int64) <-chan error {
	t.Helper()
	id := b.object(t, leaf).ID()
	out := make(chan error, 1)
	go func() { out <- b.Fill(ctx, id, ondemand.Range{Off: off, Len: n}) }()
	return out
}

// result waits for a Fill.
func result(t *testing.T, fill <-chan error) error {
	t.Helper()
	select {
	case err := <-fill:
		return err
	case <-time.After(patience):
		t.Fatal("a fill hangs")
		return nil
	}
}

// same compares [off, off+n) of the served file with what it should be.
func (b *bound) same(t *testing.T, leaf string, off, n int64) {
	t.Helper()
	source, err := os.Open(filepath.Join(b.source, leaf))
	check(t, err)
	defer source.Close()
	want, got := make([]byte, n), make([]byte, n)
	_, err = source.ReadAt(want, off)
	check(t, err)
	_, err = b.object(t, leaf).File().ReadAt(got, off)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s [%d,+%d): wrong bytes", leaf, off, n)
	}
}

// until waits for a condition that another goroutine or process brings about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("never happened: ", what)
		}
	}
}
