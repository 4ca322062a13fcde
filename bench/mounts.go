package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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
	out, err := exec.Command(m.b.lacuna, "--root", m.root, "status", "--json").Output()
	if err != nil {
		return 0, err
	}
	var s struct {
		Mounts []struct {
			Layers []struct{ Size, Present int64 }
		}
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return 0, err
	}
	if len(s.Mounts) != 1 {
		return 0, fmt.Errorf("%d mounts", len(s.Mounts))
	}
	for _, l := range s.Mounts[0].Layers {
		n += l.Size - l.Present
	}
	return n, nil
}

// readAhead sets how far the kernel reads ahead in the mount's files. EROFS gives
// its superblocks read-ahead settings of their own under /sys/class/bdi, with
// names that count up: the newest is the mount's.
func readAhead(kib int) error {
	names, err := filepath.Glob("/sys/class/bdi/erofs-*/read_ahead_kb")
	if err != nil {
		return err
	}
	newest, last := "", -1
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(filepath.Dir(name)), "erofs-%d", &n); err == nil && n > last {
			newest, last = name, n
		}
	}
	if newest == "" {
		return errors.New("no EROFS mount")
	}
	return os.WriteFile(newest, strconv.AppendInt(nil, int64(kib), 10), 0)
}

// close unmounts it and ends lacuna.
func (m *mounted) close() error {
	return errors.Join(m.cmd.Process.Signal(syscall.SIGTERM), m.cmd.Wait())
}
