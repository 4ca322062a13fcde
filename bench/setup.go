package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
)

// bench is a web server with files, and what is to be cleaned up.
type bench struct {
	options
	nginx    *exec.Cmd
	base     string // URL of the server
	registry *registry
}

const nginxConf = `worker_processes 2;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr crit;
events { worker_connections 512; }
http {
  access_log off;
  sendfile on;
  tcp_nodelay on;
  autoindex on;
  keepalive_requests 1000000;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen 127.0.0.1:%[2]d; root %[1]s/www; }
}
`

func newBench(o options) (b *bench, err error) {
	if o.lacuna, err = filepath.Abs(o.lacuna); err != nil {
		return nil, err
	}
	if o.dir, err = os.MkdirTemp(o.dir, "lacuna-bench-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(o.dir, 0o755); err != nil { // for the server's workers
		return nil, err
	}
	return &bench{options: o}, nil
}

// startServer makes the file and starts the server that has it.
func (b *bench) startServer() error {
	if err := os.Mkdir(b.path("www"), 0o755); err != nil {
		return err
	}
	f, err := os.Create(b.path("www/big"))
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{7}), b.size); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return err
	}
	conf := b.path("nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, b.dir, port), 0o644); err != nil {
		return err
	}
	b.nginx = exec.Command("nginx", "-c", conf, "-p", b.dir)
	b.nginx.Stderr = os.Stderr
	if err := b.nginx.Start(); err != nil {
		return err
	}
	b.base = fmt.Sprintf("http://127.0.0.1:%d/", port)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return c.Close()
		}
		<-time.After(10 * time.Millisecond)
	}
	return errors.New("nginx does not answer")
}

func (b *bench) close() error {
	var errs []error
	if b.nginx != nil {
		errs = append(errs, b.nginx.Process.Signal(syscall.SIGTERM), b.nginx.Wait())
	}
	if b.registry != nil {
		errs = append(errs, b.registry.close())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// instance is a lacuna in the foreground that shows one file.
type instance struct {
	b    *bench
	cmd  *exec.Cmd
	file string
	root string
}

// attach shows the server's file name with an empty cache, or with the one of
// an instance before.
func (b *bench) attach(name, root string) (*instance, error) {
	i := &instance{b: b, file: b.path("attached"), root: root}
	i.cmd = exec.Command(b.lacuna, "--root", root, "attach", "--foreground", b.base+name, i.file)
	i.cmd.Stderr = os.Stderr
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := i.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("lacuna said %q", line), err, i.cmd.Wait())
	}
	return i, nil
}

func (i *instance) close() error {
	return errors.Join(i.cmd.Process.Signal(syscall.SIGTERM), i.cmd.Wait())
}

func (i *instance) worker() (int, error) {
	s, err := i.b.status(i.root)
	return s.WorkerPID, err
}

// hits is how many events there have been that found their range present.
func (i *instance) hits() (uint64, error) {
	s, err := i.b.status(i.root)
	if err == nil && len(s.Attached) != 1 {
		err = fmt.Errorf("%d files are attached", len(s.Attached))
	}
	if err != nil {
		return 0, err
	}
	return s.Attached[0].Hits, nil
}

// status asks the instance that has the cache root.
func (b *bench) status(root string) (s control.Status, err error) {
	out, err := exec.Command(b.lacuna, "--root", root, "status", "--json").Output()
	if err != nil {
		return s, fmt.Errorf("status: %w", err)
	}
	return s, json.Unmarshal(out, &s)
}

// dropCaches empties the page cache, so that reads come from the disk.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// highWater is the most memory that a process has had resident, in bytes.
func highWater(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if rest, ok := strings.CutPrefix(string(line), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// timed runs a command and tells how long it took.
func timed(name string, args ...string) (time.Duration, error) {
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stderr = &out
	start := time.Now()
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %v: %w: %s", name, args, err, out.String())
	}
	return time.Since(start), err
}

// readAll reads a file from its start with dd, as a program of its own.
func readAll(path string) (time.Duration, error) {
	return timed("dd", "if="+path, "of=/dev/null", "bs=1M", "status=none")
}
