package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// maxSocketPath is the longest path that a unix socket's address holds
// (sun_path of struct sockaddr_un, less its final zero).
const maxSocketPath = 107

// Client talks to the instance behind a control socket.
type Client struct {
	socket string
	http   *http.Client
}

// Dial returns a client of the instance at socket, or ErrNotRunning, wrapped.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c := &Client{socket: socket}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // or a call would begin on a connection to a worker that is gone
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx, socket)
			if err != nil {
				err = dialError{err}
			}
			return conn, err
		},
	}}
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return c, conn.Close()
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	path, done, err := shorten(socket)
	if err != nil {
		return nil, notRunning(socket, err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err := errors.Join(err, done()); err != nil {
		return nil, notRunning(socket, err)
	}
	return conn, nil
}

func notRunning(socket string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("connect to %s: %w", socket, ErrNotRunning)
	}
	var call *os.SyscallError // within net's error, which names the socket again
	if errors.As(err, &call) {
		err = call.Err
	}
	return fmt.Errorf("connect to %s: %w", socket, err)
}

// shorten returns a path to the socket that fits into an address: where it is
// too long, through a descriptor of its directory. done frees that.
func shorten(socket string) (path string, done func() error, err error) {
	if len(socket) <= maxSocketPath {
		return socket, func() error { return nil }, nil
	}
	dir, err := sys.OpenPath(filepath.Dir(socket))
	if err != nil {
		return "", nil, err
	}
	return sys.ProcPath(dir.Int()) + "/" + filepath.Base(socket), dir.Close, nil
}

// Close frees the client's connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// post sends q and leaves the reply open.
func (c *Client) post(ctx context.Context, verb string, q any) (*http.Response, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lacuna/v1/"+verb, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var outer *url.Error // which quotes a URL that nobody typed
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.socket, brokenOff(err))
	}
	resp.Body = replyBody{resp.Body}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	var e Error
	err = json.NewDecoder(resp.Body).Decode(&e)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("ask the daemon at %s: status %d: %w", c.socket, resp.StatusCode, err)
	}
	if e.Message == "" {
		return nil, fmt.Errorf("ask the daemon at %s: status %d without a message", c.socket, resp.StatusCode)
	}
	return nil, &e
}

func call[R any](ctx context.Context, c *Client, verb string, q any) (reply R, err error) {
	resp, err := c.post(ctx, verb, q)
	if err != nil {
		return reply, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return reply, fmt.Errorf("read the daemon's reply: %w", err)
	}
	return reply, nil
}

// hydrate is one try of Hydrate.
func (c *Client) hydrate(ctx context.Context, q HydrateRequest, progress func(Progress)) (err error) {
	resp, err := c.post(ctx, "hydrate", q)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	for dec := json.NewDecoder(resp.Body); ; {
		var line hydrateLine
		if err := dec.Decode(&line); err != nil {
			return fmt.Errorf("read the daemon's reply: %w", err)
		}
		switch {
		case line.Error != nil:
			return line.Error
		case line.Done:
			return nil
		case line.Progress != nil:
			progress(*line.Progress)
		}
	}
}
