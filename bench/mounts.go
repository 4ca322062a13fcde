package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mounted is an image that a lacuna in the foreground, or a daemon, shows.
type mounted struct {
	b     *bench
	cmd   *exec.Cmd
	dir   string
	root  string
	began time.Time // of the command that mounts it
	ready time.Time // when that says that it is mounted
}

// begin starts a lacuna and waits for the line that says that it is ready.
func (b *bench) begin(args ...string) (cmd *exec.Cmd, began time.Time, err error) {
	cmd = exec.Command(b.lacuna, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, began, err
	}
	began = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, began, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		return nil, began, errors.Join(fmt.Errorf("lacuna said %q", line), err, cmd.Wait())
	}
	return cmd, began, nil
}

// mount mounts the image with the cache root, empty or of a mount before.
func (b *bench) mount(img *image, root string) (*mounted, error) {
	m := &mounted{b: b, dir: b.path("mnt"), root: root}
	var err error
	m.cmd, m.began, err = b.begin("--root", root, "mount", "--foreground", img.ref, m.dir)
	m.ready = time.Now()
	return m, err
}

// mountByDaemon is mount with a daemon that runs already.
func (b *bench) mountByDaemon(img *image, root string) (*mounted, error) {
	m := &mounted{b: b, dir: b.path("mnt"), root: root}
	var err error
	socket := b.path("daemon.sock")
	m.cmd = exec.Command(b.lacuna, "--root", root, "--socket", socket, "daemon")
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if err = exec.Command(b.lacuna, "--socket", socket, "status").Run(); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.began = time.Now()
	out, err := exec.Command(b.lacuna, "--socket", socket, "mount", img.ref, m.dir).CombinedOutput()
	m.ready = time.Now()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount: %w: %s", err, out), m.close())
	}
	return m, nil
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

// firstByte reads the first byte of a file.
func (m *mounted) firstByte(name string) (err error) {
	f, err := os.Open(m.path(name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.ReadFull(f, make([]byte, 1))
	return err
}

// missing is how many bytes of the image are not in the cache.
func (m *mounted) missing() (n int64, err error) {
	s, err := m.b.status(m.root)
	if err == nil && len(s.Mounted) != 1 {
		err = fmt.Errorf("%d images are mounted", len(s.Mounted))
	}
	if err != nil {
		return 0, err
	}
	for _, l := range s.Mounted[0].Layers {
		n += l.Size - l.Present
	}
	return n, nil
}

// newestBDI is the file with the read-ahead of the newest EROFS mount. EROFS
// gives its superblocks names that count up (fs/erofs/super.c, super_setup_bdi).
func newestBDI() (string, error) {
	names, err := filepath.Glob("/sys/class/bdi/erofs-*")
	if err != nil {
		return "", err
	}
	newest, last := "", -1
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(name), "erofs-%d", &n); err == nil && n > last {
			newest, last = name, n
		}
	}
	if newest == "" {
		return "", errors.New("no EROFS mount")
	}
	return filepath.Join(newest, "read_ahead_kb"), nil
}

// readAhead sets how far the kernel reads ahead in the files of the newest mount.
func readAhead(kib int) error {
	name, err := newestBDI()
	if err != nil {
		return err
	}
	return os.WriteFile(name, strconv.AppendInt(nil, int64(kib), 10), 0)
}

// readAheadNow tells how far that is.
func readAheadNow() (int, error) {
	name, err := newestBDI()
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// close unmounts it and ends lacuna.
func (m *mounted) close() error {
	return errors.Join(m.cmd.Process.Signal(syscall.SIGTERM), m.cmd.Wait())
}

// cpu is the processors' time that lacuna's processes have taken from start to
// end; other work on the machine does not add to it.
func (m *mounted) cpu() time.Duration {
	return m.cmd.ProcessState.UserTime() + m.cmd.ProcessState.SystemTime()
}
