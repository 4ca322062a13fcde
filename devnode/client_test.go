package devnode

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted connects a client to a devnode that is the test itself.
func scripted(t *testing.T) (*Client, *net.UnixConn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dn") // short: sun_path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, conn
}

func send(t *testing.T, conn *net.UnixConn, msg []byte, fds ...int) {
	t.Helper()
	if _, _, err := conn.WriteMsgUnix(msg, syscall.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

func record(t *testing.T, id uint64) []byte {
	t.Helper()
	b, err := proto.Record{ID: id, Len: 4096, Path: "blob"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMalformedMessagesEndTheClient(t *testing.T) {
	for name, c := range map[string]struct {
		msg  []byte
		fds  []int
		want error
	}{
		"garbage":           {msg: []byte("garbage"), want: proto.ErrAnswer},
		"too long":          {msg: make([]byte, 4096), want: proto.ErrAnswer},
		"empty record":      {msg: make([]byte, proto.RecordSize), want: proto.ErrRecord},
		"answer to nothing": {msg: []byte("ok sync"), want: proto.ErrAnswer},
		"file for nothing":  {msg: []byte("fd 1"), fds: []int{0}, want: proto.ErrAnswer},
		"many descriptors":  {msg: []byte("fd 1"), fds: []int{0, 0}, want: proto.ErrAnswer},
		"turned away":       {msg: []byte("error 16 EBUSY open: taken"), want: syscall.EBUSY},
	} {
		t.Run(name, func(t *testing.T) {
			client, conn := scripted(t)
			send(t, conn, c.msg, c.fds...)
			if _, err := client.Next(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("next: %v, want %v", err, c.want)
			}
			if err := client.Done(1); !errors.Is(err, c.want) {
				t.Errorf("done: %v, want %v", err, c.want)
			}
		})
	}
}

func TestRecordsAndAnswersInterleave(t *testing.T) {
	client, conn := scripted(t)
	got := make(chan error, 1)
	go func() {
		f, err := client.File(7)
		if err == nil {
			err = f.Close()
		}
		got <- err
	}()
	buf := make([]byte, 100)
	for _, want := range []string{"fd 7", "sync"} {
		if n, err := conn.Read(buf); string(buf[:n]) != want {
			t.Fatalf("%q, %v, want %q", buf[:n], err, want)
		}
	}
	send(t, conn, record(t, 1), 0) // a descriptor that nobody wants
	send(t, conn, []byte("fd 7"), 0)
	send(t, conn, record(t, 2))
	send(t, conn, []byte("ok sync"))
	if err := <-got; err != nil {
		t.Error(err)
	}
	for id := uint64(1); id <= 2; id++ {
		if req, err := client.Next(t.Context()); err != nil || req.ID != id {
			t.Errorf("%+v, %v", req, err)
		}
	}
}

func TestEndDuringACall(t *testing.T) {
	client, conn := scripted(t)
	got := make(chan error, 1)
	go func() { _, err := client.File(7); got <- err }()
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	send(t, conn, []byte("fd 7"), 0) // and no ok sync
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, io.EOF) {
		t.Errorf("file: %v", err)
	}
}
