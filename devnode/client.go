// Package devnode is a client for Lacuna's devnode: it is how a Go program
// fills the files of a directory that "lacuna bind DIR --devnode SOCKET" serves.
//
//	c, err := devnode.Dial(socket)
//	err = c.Bind(dir, "example")
//	for {
//		req, err := c.Next(ctx)
//		// write req.Len bytes at req.Off into dir/req.Path
//		err = c.Done(req.ID)
//	}
//
// The process that calls Dial, and its children, may write to the files by
// their paths. It must stay alive as long as it serves: when it ends, all
// requests end with EIO for their readers, also if a child still has the
// connection. docs/devnode.md describes the protocol, for clients in other
// languages too.
package devnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

// RefusedError is a command, or a connection, that the devnode refuses.
// errors.Is finds its Errno.
type RefusedError = proto.RefusedError

// Request asks for bytes [Off, Off+Len) of the file Path in the bound directory.
type Request struct {
	// ID names the request in Done, Fail and File. It never comes again.
	ID uint64
	// Off and Len are in bytes, in whole blocks of 4096 but for the file's end.
	Off, Len int64
	// Path is the file's leaf name.
	Path string
}

// Client is a connection to the devnode. Its methods may be called
// concurrently, and return an error once the connection has ended: io.EOF where
// the devnode closed it.
type Client struct {
	conn *net.UnixConn
	done chan struct{} // closed when receive has ended

	send sync.Mutex // held to send commands, in the order of waiting

	mu       sync.Mutex
	changed  *sync.Cond // requests or err
	requests []Request
	waiting  []*call // commands that were sent and not answered
	err      error   // why the connection has ended
}

// call is a command under way.
type call struct {
	ended   chan struct{}
	refused *RefusedError
	file    *os.File
	err     error
}

// Dial connects to the devnode at the path socket. Where another daemon serves
// it already, Bind tells: a *RefusedError with EBUSY.
func Dial(socket string) (*Client, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: socket})
	if err != nil {
		return nil, fmt.Errorf("connect to the devnode: %w", err)
	}
	c := &Client{conn: conn, done: make(chan struct{})}
	c.changed = sync.NewCond(&c.mu)
	go c.receive()
	return c, nil
}

// Bind declares that this process fills the files of dir, an absolute path to
// the bound directory, under the name tag, which may be empty. From then on
// Next returns requests. A client whose Bind has failed is best closed: what of
// it was accepted holds.
func (c *Client) Bind(dir, tag string) error {
	commands := []string{"dir " + dir, "bind"}
	if tag != "" {
		commands = []string{"dir " + dir, "tag " + tag, "bind"}
	}
	if _, err := c.call(commands...); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	return nil
}

// Next returns the next request, waiting for one until ctx ends. Each comes once.
func (c *Client) Next(ctx context.Context) (Request, error) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.err != nil:
			return Request{}, c.err
		case ctx.Err() != nil:
			return Request{}, ctx.Err()
		case len(c.requests) > 0:
			req := c.requests[0]
			c.requests = c.requests[1:]
			return req, nil
		}
		c.changed.Wait()
	}
}

// Done reports that the request's range is written. A *RefusedError with
// EINVAL: it is no longer pending; with ENODATA: a hole is left, and the
// reader has got EIO.
func (c *Client) Done(id uint64) error {
	_, err := c.call(fmt.Sprintf("done %d", id))
	return err
}

// Fail reports that the request's range cannot be filled. The reader gets errno
// if it is EIO, ENOSPC, EDQUOT, EPERM, EAGAIN or EBUSY, and EIO otherwise.
func (c *Client) Fail(id uint64, errno syscall.Errno) error {
	if errno == 0 {
		errno = syscall.EIO
	}
	_, err := c.call(fmt.Sprintf("done %d %d", id, int(errno)))
	return err
}

// File returns a descriptor of the request's file, for WriteAt. Its offset is
// shared with others. The caller closes it.
func (c *Client) File(id uint64) (*os.File, error) {
	file, err := c.call(fmt.Sprintf("fd %d", id))
	if err == nil && file == nil {
		err = fmt.Errorf("fd %d: %w", id, proto.ErrAnswer)
	}
	return file, err
}

// Close ends the connection: the devnode flushes all requests that are pending.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// call sends commands and waits until they are obeyed. Accepted commands have
// no answer, so a sync follows them, which always has one.
func (c *Client) call(commands ...string) (*os.File, error) {
	w := &call{ended: make(chan struct{})}
	if err := c.start(w, commands); err != nil {
		return nil, err
	}
	<-w.ended
	if w.err == nil && w.refused != nil {
		w.err = w.refused
	}
	return w.file, w.err
}

func (c *Client) start(w *call, commands []string) error {
	c.send.Lock()
	defer c.send.Unlock()
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.waiting = append(c.waiting, w)
	c.mu.Unlock()
	for _, command := range append(commands, string(proto.Sync)) {
		if _, err := c.conn.Write([]byte(command)); err != nil {
			// What the devnode said before it closed explains more; receive
			// reads it and ends w.
			c.abort()
			break
		}
	}
	return nil
}

// abort makes receive end after what was sent already.
func (c *Client) abort() {
	if err := c.conn.CloseRead(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.fail(fmt.Errorf("devnode: %w", err))
	}
}

// receive takes messages until the connection ends.
func (c *Client) receive() {
	defer close(c.done)
	buf := make([]byte, proto.RecordSize+1)
	oob := make([]byte, syscall.CmsgSpace(4))
	for {
		n, oobn, _, _, err := c.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("read the devnode: %w", err)
			} else {
				err = io.EOF
			}
			c.fail(err)
			return
		}
		file, err := passedFile(oob[:oobn])
		if err == nil {
			err = c.take(buf[:n], file)
		}
		if err != nil {
			c.fail(errors.Join(err, c.conn.Close()))
			return
		}
	}
}

// take handles one message, and file, which came along.
func (c *Client) take(msg []byte, file *os.File) error {
	if len(msg) == proto.RecordSize {
		r, err := proto.ParseRecord(msg)
		if err == nil {
			c.mu.Lock()
			c.requests = append(c.requests, Request{r.ID, int64(r.Off), int64(r.Len), r.Path})
			c.changed.Signal()
			c.mu.Unlock()
		}
		return closeWith(err, file)
	}
	answer, err := proto.ParseAnswer(msg)
	if err != nil {
		return closeWith(err, file)
	}
	if r := answer.Refused; r != nil && r.Command == string(proto.Open) {
		return closeWith(r, file)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		return closeWith(fmt.Errorf("%w: nothing was asked", proto.ErrAnswer), file)
	}
	// Answers come in the order of the commands: this one is of the oldest.
	w := c.waiting[0]
	switch {
	case answer.Synced:
		c.waiting = c.waiting[1:]
		close(w.ended)
	case answer.Refused != nil && w.refused == nil:
		w.refused = answer.Refused // of several the first is the cause
	case answer.File != nil:
		w.file = file
		return nil
	}
	return closeWith(nil, file)
}

// fail ends the client: every call and every Next return err.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for _, w := range c.waiting {
		w.err = err
		if w.file != nil {
			w.err, w.file = closeWith(err, w.file), nil
		}
		close(w.ended)
	}
	c.waiting = nil
	c.changed.Broadcast()
}

// closeWith closes a descriptor that nobody wants and returns err with what
// that gave.
func closeWith(err error, file *os.File) error {
	if file == nil {
		return err
	}
	return errors.Join(err, file.Close())
}

// passedFile is the descriptor in a message's ancillary data, or nil.
func passedFile(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse ancillary data: %w", err)
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return nil, fmt.Errorf("parse passed descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "backing file"))
		}
	}
	if len(files) == 1 {
		return files[0], nil
	}
	for _, f := range files {
		err = closeWith(err, f)
	}
	return nil, errors.Join(err, fmt.Errorf("%d descriptors passed at once: %w", len(files), proto.ErrAnswer))
}
