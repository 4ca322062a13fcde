package fuse

import (
	"context"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

// fills is a table that writes what it is asked for once it is let go.
func fills(o *ondemandtest.Object, entered chan<- ondemand.Range, release <-chan struct{}) *ondemand.Table {
	return ondemand.NewTable(ondemandtest.FillFunc(func(ctx context.Context, _ ondemand.ObjectID, r ondemand.Range) error {
		entered <- r
		select {
		case <-release:
			return o.Write(r)
		case <-ctx.Done():
			return ctx.Err()
		}
	}), ondemand.TableOptions{Deadline: time.Minute})
}

// A connection outlives what served it: who slept when that went away is served by the
// next one, and so is whoever comes after, also in a directory that was open.
func TestNextConnGoesOn(t *testing.T) {
	o := ondemandtest.NewObject(t, t.TempDir(), 1, 1<<20)
	entered := make(chan ondemand.Range, 10)
	never, now := make(chan struct{}), make(chan struct{})
	close(now)
	first := fills(o, entered, never)
	in := newInstance(t, first, t.TempDir())
	defer func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}()
	path, err := in.Attach(o)
	if err != nil {
		t.Fatal(err)
	}
	s := in.shown[o.ID()]
	reader := ondemandtest.StartReader(t)
	r := ondemand.Range{Off: 1 << 19, Len: 4096}
	sleeping := reader.Start(path, r.Off, int(r.Len))
	<-entered
	// As if the process had died: nothing of it answers any more.
	if err := s.halt(); err != nil {
		t.Fatal(err)
	}
	s.conn.abandon()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	in.table = fills(o, entered, now)
	s.serve(Options{Connection: s.device, Tree: s.conn.o.Tree, Table: in.table, Init: s.init, OnError: s.conn.o.OnError})
	for name, c := range map[string]<-chan ondemandtest.Result{"that slept": sleeping, "that came later": reader.Start(path, 0, 1<<16)} {
		res := <-c
		want := r
		if name != "that slept" {
			want = ondemand.Range{Len: 1 << 16}
		}
		if res.Err != nil || res.Errno != 0 || string(res.Data) != string(ondemandtest.Bytes(o.Seed, want)) {
			t.Errorf("the reader %s: %d bytes, %v, %v", name, len(res.Data), res.Errno, res.Err)
		}
	}
}

// abandon makes what still waits answer nothing.
func (c *Conn) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for unique, p := range c.pending {
		p.mu.Lock()
		if !p.over {
			p.over = true
			c.answers.Done()
		}
		p.mu.Unlock()
		delete(c.pending, unique)
	}
}
