package control

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// keptSocket is a listening socket of which each server gets a duplicate, as a
// worker gets it from its keeper.
func keptSocket(t *testing.T) (start func(Handler) *Server, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	kept, err := Listen(socket)
	ok(t, err)
	t.Cleanup(func() { ok(t, kept.Close()) })
	return func(h Handler) *Server {
		f, err := kept.File()
		ok(t, err)
		l, err := net.FileListener(f)
		ok(t, err)
		ok(t, f.Close())
		s := NewServer(h)
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		t.Cleanup(func() {
			ok(t, s.Close())
			ok(t, <-served)
		})
		return s
	}, socket
}

func TestHydrateGoesOnWithTheNextWorker(t *testing.T) {
	start, socket := keptSocket(t)
	const lives = 5
	stepped := make(chan struct{})
	var life atomic.Int64
	h := handlers{hydrate: func(ctx context.Context, _ HydrateRequest, progress func(Progress)) error {
		n := life.Add(1)
		progress(Progress{n, lives})
		if n == lives {
			return nil
		}
		select {
		case stepped <- struct{}{}:
			<-ctx.Done()
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	s := start(h)
	client, err := Dial(t.Context(), socket)
	ok(t, err)
	defer client.Close()
	done := make(chan error, 1)
	go func() { done <- client.Hydrate(t.Context(), HydrateRequest{File: "/f"}, func(Progress) {}) }()
	for range lives - 1 {
		<-stepped
		ok(t, s.Close())
		s = start(h)
	}
	ok(t, <-done)
}

func TestClientGivesUpOnAWorkerThatNeverLives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket)
	ok(t, err)
	var met atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			met.Add(1)
			if conn.Close() != nil {
				return
			}
		}
	}()
	client, err := Dial(t.Context(), socket)
	ok(t, err)
	defer client.Close()
	var told *Error
	if err := client.Hydrate(t.Context(), HydrateRequest{File: "/f"}, func(Progress) {}); !errors.As(err, &told) || told.Hint == "" {
		t.Errorf("got %v", err)
	}
	if n := met.Load(); n != tries+1 {
		t.Errorf("%d connections", n)
	}
	ok(t, l.Close())
	<-ended
}

// The worker ends after it has done what was asked, and before it says so.
func TestWhatTheWorkerBeforeHasDoneIsNotDoneAgain(t *testing.T) {
	for name, test := range map[string]struct {
		after Status
		call  func(*Client) error
	}{
		"attach": {Status{Attached: []Attached{{File: "/f", Object: "o", Size: 7}}}, func(c *Client) error {
			reply, err := c.Attach(context.Background(), AttachRequest{File: "/f"})
			if err == nil && (reply.Object != "o" || reply.Size != 7) {
				return errors.New("another reply")
			}
			return err
		}},
		"bind": {Status{Bound: []Bound{{Dir: "/d", Files: 3}}}, func(c *Client) error {
			reply, err := c.Bind(context.Background(), BindRequest{Dir: "/d"})
			if err == nil && reply.Files != 3 {
				return errors.New("another reply")
			}
			return err
		}},
		"detach": {Status{}, func(c *Client) error { return c.Detach(context.Background(), DetachRequest{Path: "/f"}) }},
		"detach --hydrate": {Status{}, func(c *Client) error {
			var told *Error
			err := c.Detach(context.Background(), DetachRequest{Path: "/no/such/file", Hydrate: true})
			if !errors.As(err, &told) || told.Hint == "" {
				return errors.New("the file that is not there is not missed")
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			start, socket := keptSocket(t)
			asked := make(chan struct{}, 1)
			wait := func(ctx context.Context) error {
				asked <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			s := start(handlers{
				attach: func(ctx context.Context, _ AttachRequest) (AttachReply, error) { return AttachReply{}, wait(ctx) },
				bind:   func(ctx context.Context, _ BindRequest) (BindReply, error) { return BindReply{}, wait(ctx) },
				detach: func(ctx context.Context, _ DetachRequest) error { return wait(ctx) },
			})
			client, err := Dial(t.Context(), socket)
			ok(t, err)
			defer client.Close()
			done := make(chan error, 1)
			go func() { done <- test.call(client) }()
			<-asked
			ok(t, s.Close())
			start(handlers{status: func(context.Context) (Status, error) { return test.after, nil }})
			ok(t, <-done)
		})
	}
}
