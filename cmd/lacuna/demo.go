package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
)

// demoCmd shows the main job.
type demoCmd struct {
	Size int64  `default:"1024" placeholder:"MIB" help:"Size of the file in MiB."`
	Dir  string `default:"/var/tmp" placeholder:"DIR" help:"Where the demo works; on ext4, xfs or btrfs."`
}

// Help is the long help.
func (demoCmd) Help() string {
	return `Starts a web server on this machine with a large file, attaches the file, reads
three places of it, then all of it, compares, and takes everything away again.

  # lacuna demo
  a web server on this machine has a file of 1024 MiB
  $ lacuna attach http://127.0.0.1:41173/served.bin /var/tmp/demo-1/big.bin
  ready after 30 ms
    4 KiB at the end        1.2 ms   16.0 KiB fetched
  ...

EXIT STATUS
  0  ok
  1  the bytes differ, or another error
  2  wrong usage
  3  not supported by this kernel or DIR's filesystem, or not root`
}

// demo is one run.
type demo struct {
	*app
	ctx       context.Context
	exe, dir  string
	server    http.Server
	url, file string
	instance  *exec.Cmd
	fetched   int64
}

// Run is the verb.
func (c *demoCmd) Run(a *app) (err error) {
	ctx, stop := interruptible()
	defer stop()
	d := &demo{app: a, ctx: ctx}
	if d.exe, err = os.Executable(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp(c.Dir, "lacuna-demo-"); err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	d.file = filepath.Join(d.dir, "big.bin")
	size := c.Size << 20
	if err := a.print("a web server on this machine has a file of %d MiB\n", c.Size); err != nil {
		return err
	}
	if err := d.serve(size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.server.Close()) }()
	if err := d.attach(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.detach()) }()
	return d.show(size)
}

func (d *demo) show(size int64) error {
	for _, place := range []struct {
		name string
		off  int64
	}{{"the end", size - 4096}, {"the middle", size / 2}, {"the beginning", 0}} {
		if err := d.readPlace(place.name, place.off); err != nil {
			return err
		}
	}
	return d.readAll(size)
}

// serve makes the file and serves it on loopback.
func (d *demo) serve(size int64) error {
	path := filepath.Join(d.dir, "served.bin")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	seed := [32]byte{1: 42}
	_, err = io.CopyN(f, rand.NewChaCha8(seed), size)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.url = "http://" + l.Addr().String() + "/served.bin"
	d.server.ReadHeaderTimeout = 10 * time.Second
	d.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })
	go func() {
		if err := d.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(d.stderr, err)
		}
	}()
	return nil
}

// attach starts an instance in the foreground and waits until it is ready.
func (d *demo) attach() error {
	d.instance = exec.Command(d.exe, "--root", filepath.Join(d.dir, "cache"), "attach", "--foreground", d.url, d.file)
	d.instance.Stderr = d.stderr
	out, err := d.instance.StdoutPipe()
	if err != nil {
		return err
	}
	if err := d.print("$ lacuna attach %s %s\n", d.url, d.file); err != nil {
		return err
	}
	start := time.Now()
	if err := d.instance.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "ready" {
		var exit *exec.ExitError
		if err := d.instance.Wait(); errors.As(err, &exit) {
			return errSilent(exit.ExitCode()) // it has told why
		}
		return errors.New("the instance ended before it was ready")
	}
	return d.print("%s after %s\n", strings.TrimSpace(line), durationText(time.Since(start)))
}

// detach ends the instance, which takes the file away.
func (d *demo) detach() error {
	if err := d.instance.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the instance: %w", err)
	}
	if err := d.instance.Wait(); err != nil {
		return fmt.Errorf("stop the instance: %w", err)
	}
	if _, err := os.Stat(d.file); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is still there", d.file)
	}
	return d.print("detached: nothing is left behind\n")
}

// status asks the instance how much it has fetched since the last call.
func (d *demo) status() (now int64, err error) {
	client, err := control.Dial(d.ctx, filepath.Join(d.dir, "cache", "lacuna.sock"))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	s, err := client.Status(d.ctx)
	if err != nil {
		return 0, err
	}
	if len(s.Attached) != 1 {
		return 0, errors.New("the instance does not serve the file")
	}
	now = s.Attached[0].Fetched - d.fetched
	d.fetched = s.Attached[0].Fetched
	return now, nil
}

func (d *demo) readPlace(name string, off int64) (err error) {
	f, err := os.Open(d.file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 4096)
	start := time.Now()
	if _, err := f.ReadAt(buf, off); err != nil {
		return err
	}
	took := time.Since(start)
	fetched, err := d.status()
	if err != nil {
		return err
	}
	return d.print("  %-21s %8s  %9s fetched\n", "4 KiB at "+name, durationText(took), sizeText(fetched))
}

// readAll compares all of the file with what the server has.
func (d *demo) readAll(size int64) error {
	start := time.Now()
	got, err := digest(d.ctx, d.file)
	if err != nil {
		return err
	}
	took := time.Since(start)
	fetched, err := d.status()
	if err != nil {
		return err
	}
	want, err := digest(d.ctx, filepath.Join(d.dir, "served.bin"))
	if err != nil {
		return err
	}
	err = d.print("  %-21s %8s  %9s fetched, %.0f MB/s\nsha256 of the file      %x\nsha256 at the server    %x\n",
		"all of it", durationText(took), sizeText(fetched), float64(size)/1e6/took.Seconds(), got, want)
	if err == nil && string(got) != string(want) {
		err = errors.New("the bytes differ")
	}
	return err
}

func digest(ctx context.Context, path string) (sum []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return h.Sum(nil), nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, ctx.Err()
}
