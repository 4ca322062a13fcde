package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

// nginx is a web server that this project did not write, with one file.
type nginx struct {
	t         *testing.T
	dir, file string
	address   string
	cmd       *exec.Cmd // nil while it does not run
}

const nginxConfig = `
daemon off;
master_process off;
user root;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	limit_rate %[3]s;
	server {
		listen %[2]s;
		root %[1]s/www;
	}
}
`

// newNginx starts nginx with a real file of over 100 MB. rate bounds each
// answer, 0: not.
func newNginx(t *testing.T, rate string) *nginx {
	t.Helper()
	instance.NeedKernel(t)
	n := &nginx{t: t, dir: instance.Dir(t)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = l.Addr().String()
	n.file = filepath.Join(n.dir, "www", "file")
	if err := errors.Join(l.Close(), os.Mkdir(filepath.Join(n.dir, "www"), 0o755), os.Link(instance.Shared(t, "real", realFile), n.file)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	n.limit(rate)
	n.start()
	return n
}

// limit sets the rate of each answer, as of the next start.
func (n *nginx) limit(rate string) {
	n.t.Helper()
	conf := fmt.Sprintf(nginxConfig, n.dir, n.address, rate)
	if err := os.WriteFile(filepath.Join(n.dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// tarFile packs files of this system until there is enough of them.
func tarFile(path string) (err error) {
	const enough = 150 << 20
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w, done := tar.NewWriter(out), errors.New("enough")
	size := int64(0)
	err = filepath.WalkDir("/usr", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read is not needed
		}
		f, err := os.Open(name)
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		defer func() { _ = f.Close() }()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: st.Size(), Mode: 0o644}); err != nil {
			return err
		}
		n, err := io.Copy(w, f)
		if size += n; err == nil && size > enough {
			err = done
		}
		return err
	})
	if !errors.Is(err, done) {
		return fmt.Errorf("pack /usr: %d bytes: %w", size, err)
	}
	return w.Close()
}

func (n *nginx) url() string { return "http://" + n.address + "/file" }

func (n *nginx) start() {
	n.t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		path = "/usr/sbin/nginx" // where Debian has it
	}
	n.cmd = exec.Command(path, "-c", filepath.Join(n.dir, "nginx.conf"))
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("start nginx (Debian package nginx-light): %v", err)
	}
	instance.Eventually(n.t, 10*time.Second, func() error {
		reply, err := http.Head(n.url())
		if err != nil {
			return err
		}
		if reply.StatusCode != http.StatusOK {
			return fmt.Errorf("nginx answers %s", reply.Status)
		}
		return reply.Body.Close()
	})
	http.DefaultClient.CloseIdleConnections()
}

// stop kills the server, as nobody announces a failure.
func (n *nginx) stop() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait() // the status is that of a killed process
	n.cmd = nil
}

func (n *nginx) order(path string, rng interface{ Uint64() uint64 }) stormOrder {
	n.t.Helper()
	st, err := os.Stat(n.file)
	if err != nil {
		n.t.Fatal(err)
	}
	return stormOrder{Path: path, Against: n.file, Size: st.Size(), Readers: 16, Longest: 256 << 10, Seed: rng.Uint64()}
}

func sha256sum(t *testing.T, path string) string {
	t.Helper()
	var told bytes.Buffer
	cmd := exec.Command("sha256sum", path)
	cmd.Stderr = &told
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sha256sum %s: %v: %s", path, err, told.String())
	}
	sum, _, _ := strings.Cut(string(out), " ")
	return sum
}

func TestNginxFileReadsEqual(t *testing.T) {
	rng := instance.Rand(t)
	n := newNginx(t, "0")
	i := newLacuna(t, "")
	i.StartDaemon()
	whole, random := filepath.Join(i.Dir, "whole"), filepath.Join(i.Dir, "random")
	want := sha256sum(t, n.file)
	i.Lacuna("attach", "--sha256", want, n.url(), whole)
	began := time.Now()
	if got := sha256sum(t, whole); got != want {
		t.Errorf("sha256sum of the attached file %s, of the server's %s", got, want)
	}
	t.Logf("sha256sum through the attached file: %v, equal", time.Since(began).Round(time.Millisecond))
	i.Lacuna("attach", n.url()+"?random", random)
	o := n.order(random, rng)
	o.Once = true
	began = time.Now()
	tally := startStorm(t, o).wait(2 * time.Minute)
	t.Logf("%d readers read all of %d MB in random order: %v, %v", o.Readers, o.Size/1e6, time.Since(began).Round(time.Millisecond), &tally)
	if tally.Wrong+tally.EIO+tally.Other > 0 || tally.Bytes != o.Size*int64(o.Readers) {
		t.Errorf("not all bytes are equal: %v", tally.Examples)
	}
	i.Check()
}

func TestNginxStopsAndComesBack(t *testing.T) {
	rng := instance.Rand(t)
	n := newNginx(t, "3m")
	i := newLacuna(t, "deadline = \"4s\"\nstall = \"1s\"\n")
	i.StartDaemon()
	path := filepath.Join(i.Dir, "file")
	i.Lacuna("attach", n.url(), path)
	storm := startStorm(t, n.order(path, rng))
	for range 3 { // shorter than the deadline: readers wait
		instance.Pause(250 * time.Millisecond)
		n.stop()
		n.start()
	}
	instance.Pause(250 * time.Millisecond)
	n.stop()
	t.Logf("the server stops with %d of %d bytes present", i.Status().Attached[0].Present, i.Status().Attached[0].Size)
	reader := ondemandtest.StartReader(t)
	for range 2 {
		began := time.Now()
		r := reader.Read(path, rng.Int64N(100<<20), 4096)
		if r.Err != nil || r.Errno == 0 && i.Status().Attached[0].Complete {
			t.Fatalf("read without a server: %v, %v", r.Errno, r.Err)
		}
		t.Logf("read without a server: %v after %v", r.Errno, time.Since(began).Round(time.Millisecond))
	}
	n.start()
	back := time.Now()
	instance.Eventually(t, 30*time.Second, func() error {
		if r := reader.Read(path, rng.Int64N(100<<20), 4096); r.Errno != 0 {
			return r.Errno
		}
		return nil
	})
	t.Logf("data comes again %v after the server", time.Since(back).Round(time.Millisecond))
	tally := storm.finish(20 * time.Second)
	t.Logf("nginx killed under 16 readers: %v", &tally)
	if tally.Wrong+tally.Other > 0 || tally.Slowest > 8*time.Second {
		t.Errorf("not right bytes or EIO in time: %v", tally.Examples)
	}
	n.stop()
	n.limit("0")
	n.start()
	i.Check()
}

func TestNginxFileChangesUnderReaders(t *testing.T) {
	rng := instance.Rand(t)
	n := newNginx(t, "3m")
	i := newLacuna(t, "deadline = \"4s\"\nstall = \"1s\"\n")
	i.StartDaemon()
	path, old := filepath.Join(i.Dir, "file"), filepath.Join(n.dir, "old")
	i.Lacuna("attach", n.url(), path)
	if err := os.Link(n.file, old); err != nil {
		t.Fatal(err)
	}
	o := n.order(path, rng)
	o.Against = old
	storm := startStorm(t, o)
	instance.Pause(time.Second)
	// Another file of the same size takes its place.
	other := filepath.Join(n.dir, "other")
	makeHollow(t, other, o.Size)
	now := time.Now().Add(time.Hour)
	if err := errors.Join(os.Chtimes(other, now, now), os.Rename(other, n.file)); err != nil {
		t.Fatal(err)
	}
	reader := ondemandtest.StartReader(t)
	instance.Eventually(t, 30*time.Second, func() error {
		if r := reader.Read(path, rng.Int64N(o.Size-4096), 4096); r.Errno != syscall.EIO {
			return fmt.Errorf("a read ended with errno %d", int(r.Errno))
		}
		return nil
	})
	if s := i.Status(); s.Attached[0].Error == "" {
		t.Error("status does not tell that the source has changed")
	} else {
		t.Logf("status: %s", s.Attached[0].Error)
	}
	instance.Pause(time.Second)
	tally := storm.finish(20 * time.Second)
	t.Logf("file replaced on the server: %v", &tally)
	if tally.Wrong+tally.Other > 0 || tally.EIO == 0 || tally.EIO == tally.Reads {
		t.Errorf("not old bytes or EIO: %v", tally.Examples)
	}
}
