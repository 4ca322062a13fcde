package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/mount"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	leaktest.Main(m)
}

// instance shows each of its objects in a filesystem of its own.
type instance struct {
	t     testing.TB
	table *ondemand.Table
	dir   string
	errs  chan error

	mu    sync.Mutex
	shown map[ondemand.ObjectID]*shown
}

// shown is one mounted filesystem.
type shown struct {
	dir    string
	conn   *Conn
	device *sys.FD
	init   []byte
	stop   context.CancelFunc
	served chan error
	close  []func() error
}

func newInstance(t testing.TB, table *ondemand.Table, dir string) *instance {
	return &instance{t: t, table: table, dir: dir, errs: make(chan error, 100), shown: make(map[ondemand.ObjectID]*shown)}
}

// serve lets a connection serve.
func (s *shown) serve(o Options) {
	ctx, cancel := context.WithCancel(context.Background())
	s.conn, s.stop, s.served = New(o), cancel, make(chan error, 1)
	go func() { s.served <- s.conn.Serve(ctx) }()
}

// halt ends its serving; the filesystem stays mounted.
func (s *shown) halt() error {
	s.stop()
	return <-s.served
}

// show mounts a filesystem image with its devices.
func (in *instance) show(img *erofs.Image, devices []Device) (s *shown, err error) {
	var b bytes.Buffer
	if err := erofs.Write(&b, img); err != nil {
		return nil, err
	}
	r, err := erofs.Open(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		return nil, err
	}
	tree, err := NewTree(r, devices)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(in.dir, "mnt-")
	if err != nil {
		return nil, err
	}
	s = &shown{dir: dir}
	if s.device, err = sys.OpenFuse(); err != nil {
		return nil, err
	}
	f := mount.FUSE{Connection: s.device, Source: "test", Others: true}
	made, err := f.Make()
	if err != nil {
		return nil, errors.Join(err, s.device.Close())
	}
	s.serve(Options{
		Connection: s.device, Tree: tree, Table: in.table,
		OnInit: func(q []byte) error { s.init = q; return nil }, OnError: func(err error) { in.errs <- err },
	})
	return s, errors.Join(f.Settle(made), made.MoveTo(dir), made.Close())
}

// Attach implements ondemandtest.Instance.
func (in *instance) Attach(o *ondemandtest.Object) (string, error) {
	data, err := os.Open(o.Path)
	if err != nil {
		return "", err
	}
	blocks := ondemand.BlockCount(o.Size())
	img := &erofs.Image{
		Root:    &erofs.Inode{Mode: 0o40755, Children: []erofs.Dirent{{Name: "file", Inode: &erofs.Inode{Mode: 0o100644, Size: o.Size()}}}},
		Devices: []erofs.Device{{Tag: string(o.ID()), Blocks: uint64(blocks)}},
	}
	s, err := in.show(img, []Device{{Object: o, Data: data}})
	if err != nil {
		return "", errors.Join(err, data.Close())
	}
	s.close = append(s.close, data.Close)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.shown[o.ID()] = s
	return filepath.Join(s.dir, "file"), nil
}

// Detach implements ondemandtest.Instance: pending reads end, and what is open afterwards
// is denied.
func (in *instance) Detach(id ondemand.ObjectID) error {
	in.mu.Lock()
	s := in.shown[id]
	delete(in.shown, id)
	in.mu.Unlock()
	if s == nil {
		return fmt.Errorf("detach %s: not attached", id)
	}
	s.conn.Leave()
	return in.end(s)
}

// end unmounts it and waits until nobody has it open.
func (in *instance) end(s *shown) error {
	err := mount.Unmount(s.dir, true)
	err = errors.Join(err, <-s.served)
	s.stop()
	s.conn.Drain()
	err = errors.Join(err, s.device.Close())
	for _, c := range s.close {
		err = errors.Join(err, c())
	}
	return errors.Join(err, os.Remove(s.dir))
}

// Close implements ondemandtest.Instance.
func (in *instance) Close() error {
	err := in.table.Close()
	in.mu.Lock()
	defer in.mu.Unlock()
	for id, s := range in.shown {
		err = errors.Join(err, in.end(s))
		delete(in.shown, id)
	}
	select {
	case e := <-in.errs:
		err = errors.Join(err, e)
	default:
	}
	return err
}

func dir(t testing.TB) string { return t.TempDir() }

func open(t *testing.T, table *ondemand.Table, dir string) ondemandtest.Instance {
	return newInstance(t, table, dir)
}

func TestConformance(t *testing.T) { ondemandtest.Run(t, dir, open) }
