package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A worker may be replaced while a command waits for it: it has died, or is
// upgraded. The keeper holds the socket meanwhile, so the command connects again
// and waits for the next worker, which goes on with what is on record.

// tries is how often in a row a command asks anew without getting further.
const tries = 12

// pause before the nth try; longer where the one before has failed too.
func pause(n int) time.Duration { return min(time.Duration(n)*50*time.Millisecond, time.Second) }

// errBrokenOff: who answered has ended before it was done.
var errBrokenOff = errors.New("the worker that was asked has ended")

// dialError is an error of connecting: nobody was asked.
type dialError struct{ error }

// Unwrap is the error itself.
func (e dialError) Unwrap() error { return e.error }

// brokenOff marks err, of a call whose context has not ended, as errBrokenOff
// unless there never was a connection.
func brokenOff(err error) error {
	if errors.As(err, new(dialError)) {
		return err
	}
	return fmt.Errorf("%w: %w", errBrokenOff, err)
}

// replyBody is a reply's body. Its end is io.EOF only where the reply is whole.
type replyBody struct{ io.ReadCloser }

// Read reads, and tells where the reply was broken off.
func (b replyBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = brokenOff(err)
	}
	return n, err
}

// again calls ask until it is answered. ask tells whether it got further than ever
// before; n counts its calls, from 0.
func again(ctx context.Context, what string, ask func(n int) (further bool, err error)) error {
	failed := 0
	for n := 0; ; n++ {
		further, err := ask(n)
		switch {
		case n > 0 && errors.Is(err, ErrNotRunning):
			return &Error{
				Message: what + ": the daemon has ended before it was done",
				Hint:    "its log says why; once it runs again, the same command goes on", Exit: ExitError,
			}
		case !errors.Is(err, errBrokenOff) || ctx.Err() != nil:
			return err
		}
		if failed++; further {
			failed = 1
		}
		if failed == tries {
			return &Error{
				Message: fmt.Sprintf("%s: the daemon did not answer %d times: %v", what, tries, err),
				Hint:    "`lacuna status` and the daemon's log say why", Exit: ExitError,
			}
		}
		select {
		case <-time.After(pause(failed)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Attach makes a source appear as a file.
func (c *Client) Attach(ctx context.Context, q AttachRequest) (reply AttachReply, err error) {
	err = again(ctx, "attach "+q.File, func(n int) (bool, error) {
		if n > 0 { // the one before may have done it
			s, err := c.status(ctx)
			if err != nil {
				return false, err
			}
			for _, f := range s.Attached {
				if f.File == q.File && !f.Leaving {
					reply = AttachReply{Object: f.Object, Size: f.Size}
					return true, nil
				}
			}
		}
		reply, err = call[AttachReply](ctx, c, "attach", q)
		return false, err
	})
	return reply, err
}

// Detach undoes an attach or a bind.
func (c *Client) Detach(ctx context.Context, q DetachRequest) error {
	return again(ctx, "detach "+q.Path, func(n int) (bool, error) {
		if n > 0 { // the one before may have done it
			s, err := c.status(ctx)
			if err != nil {
				return false, err
			}
			if !s.has(q.Path) {
				return true, leftWhole(q)
			}
		}
		_, err := call[struct{}](ctx, c, "detach", q)
		return false, err
	})
}

// has tells whether path is served, and not only to those who still have it open.
func (s *Status) has(path string) bool {
	for _, f := range s.Attached {
		if f.File == path && !f.Leaving {
			return true
		}
	}
	for _, b := range s.Bound {
		if b.Dir == path {
			return true
		}
	}
	for _, b := range s.Broken {
		if b.Path == path {
			return true
		}
	}
	return false
}

// leftWhole tells whether a detach that broke off has left an ordinary file,
// where that was asked for.
func leftWhole(q DetachRequest) error {
	if !q.Hydrate {
		return nil
	}
	if st, err := os.Lstat(q.Path); err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		return nil
	}
	return &Error{
		Message: fmt.Sprintf("detach %s: it is detached, but the daemon's worker has ended before it left the file", q.Path),
		Hint:    "attach it again, which finds its data in the cache, then detach it again", Exit: ExitError,
	}
}

// Bind serves a directory.
func (c *Client) Bind(ctx context.Context, q BindRequest) (reply BindReply, err error) {
	err = again(ctx, "bind "+q.Dir, func(n int) (bool, error) {
		if n > 0 { // the one before may have done it
			s, err := c.status(ctx)
			if err != nil {
				return false, err
			}
			for _, b := range s.Bound {
				if b.Dir == q.Dir {
					reply = BindReply{Files: b.Files}
					return true, nil
				}
			}
		}
		reply, err = call[BindReply](ctx, c, "bind", q)
		return false, err
	})
	return reply, err
}

// Stop has the instance end, and tells whom it waits for.
func (c *Client) Stop(ctx context.Context) (reply StopReply, err error) {
	err = again(ctx, "stop", func(n int) (bool, error) {
		reply, err = call[StopReply](ctx, c, "stop", struct{}{})
		if n > 0 && errors.Is(err, ErrNotRunning) {
			return true, nil // it has ended before it could answer
		}
		return false, err
	})
	return reply, err
}

// Status asks for the instance's state.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = again(ctx, "status", func(int) (bool, error) {
		s, err = c.status(ctx)
		return false, err
	})
	return s, err
}

func (c *Client) status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, "status", struct{}{})
}

// Hydrate fetches all data of a file, calling progress from time to time.
func (c *Client) Hydrate(ctx context.Context, q HydrateRequest, progress func(Progress)) error {
	var most int64
	return again(ctx, "hydrate "+q.File, func(int) (further bool, err error) {
		err = c.hydrate(ctx, q, func(p Progress) {
			further = further || p.Present > most
			most = max(most, p.Present)
			progress(p)
		})
		return further, err
	})
}
