package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

// smallRoot puts the instance's cache root on an ext4 of 64 MiB.
func (i *lacuna) smallRoot() {
	i.t.Helper()
	disk, point := filepath.Join(i.Dir, "disk"), filepath.Join(i.Dir, "small")
	makeHollow(i.t, disk, 64<<20)
	if err := os.Mkdir(point, 0o700); err != nil {
		i.t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", disk}, {"mount", "-o", "loop", disk, point}} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if path, err := exec.LookPath("/usr/sbin/" + argv[0]); err == nil {
			cmd.Path, cmd.Err = path, nil
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			i.t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	i.t.Cleanup(func() { // before the instance's own, which ends what a failed test left
		if i.t.Failed() {
			return
		}
		select {
		case <-i.Ended:
		default:
			i.Stop()
		}
		if err := syscall.Unmount(point, 0); err != nil {
			i.t.Errorf("unmount the small filesystem: %v", err)
		}
	})
	i.Root = filepath.Join(point, "cache")
}

// fillUp takes all space of the root's filesystem, and returns how to free it.
func (i *lacuna) fillUp() (free func()) {
	i.t.Helper()
	path := filepath.Join(filepath.Dir(i.Root), "ballast")
	f, err := os.Create(path)
	if err != nil {
		i.t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) || f.Close() != nil {
		i.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			i.t.Error(err)
		}
	}
}

func TestDiskFullReachesReader(t *testing.T) {
	i := newLacuna(t, "")
	i.smallRoot()
	i.StartDaemon()
	const size = 200 << 20
	server := sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), size)
	file := filepath.Join(i.Dir, "file")
	i.Lacuna("attach", server.URL(), file)
	reader := ondemandtest.StartReader(t)
	const piece = 1 << 20
	off := int64(0)
	for ; off < size; off += piece {
		r := reader.Read(file, off, piece)
		if !bytes.Equal(r.Data, pattern(stormSeed, off, len(r.Data))) {
			t.Fatalf("wrong bytes at %d", off)
		}
		if r.Errno == syscall.EIO { // whatever the reason was, EROFS tells that (fs/erofs/fileio.c)
			break
		}
		if r.Errno != 0 || len(r.Data) != piece {
			t.Fatalf("read at %d: %v, %d bytes", off, r.Errno, len(r.Data))
		}
	}
	if off == size || off < 20<<20 {
		t.Fatalf("%d MiB were read with 64 MiB of space", off>>20)
	}
	t.Logf("the disk is full at %d MiB", off>>20)
	if text := i.Lacuna("status"); !strings.Contains(text, "no space left") {
		t.Errorf("status does not tell why: %s", text)
	}
	// The instance answers, and what is present is read.
	if s := i.Status(); len(s.Attached) != 1 || s.Attached[0].Present < 20<<20 {
		t.Errorf("status: %+v", s.Attached)
	}
	if r := reader.Read(file, 0, piece); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 0, piece)) {
		t.Errorf("read of what is present: %v", r.Errno)
	}
	i.Signal(syscall.SIGTERM)
	<-i.Ended
	// Presence that cannot be recorded is told of; the data is fetched again.
	t.Logf("stopped on the full disk with %d: %s", i.Keeper.ProcessState.ExitCode(), i.Log.Tail(4))
	i.Check()
}

func TestDiskFullThenFreedReadsGoOn(t *testing.T) {
	i := newLacuna(t, "")
	i.smallRoot()
	i.StartDaemon()
	server := sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), 32<<20)
	file := filepath.Join(i.Dir, "file")
	i.Lacuna("attach", server.URL(), file)
	free := i.fillUp()
	reader := ondemandtest.StartReader(t)
	for off := int64(0); off < 32<<20; off += 4 << 20 {
		// Blocks that the filesystem has set aside may serve a few.
		if r := reader.Read(file, off, 1<<20); r.Errno != syscall.EIO && !bytes.Equal(r.Data, pattern(stormSeed, off, len(r.Data))) {
			t.Fatalf("read at %d: %v", off, r.Errno)
		}
	}
	if r := reader.Read(file, 31<<20, 1<<20); r.Errno != syscall.EIO {
		t.Errorf("read on a full disk: %v", r.Errno)
	}
	if _, err := i.Try("attach", server.URL()+"?second", file+"2"); instance.ExitOf(err) != int(control.ExitError) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("attach on a full disk: %v", err)
	}
	if _, err := os.Lstat(file + "2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has left something: %v", err)
	}
	free()
	freed := time.Now()
	instance.Eventually(t, 20*time.Second, func() error {
		if r := reader.Read(file, 31<<20, 1<<20); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 31<<20, 1<<20)) {
			return r.Errno
		}
		return nil
	})
	t.Logf("data comes %v after space was freed", time.Since(freed).Round(time.Millisecond))
	if r := reader.Read(file, 0, 32<<20); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 0, 32<<20)) {
		t.Errorf("read of the whole: %v, %d bytes", r.Errno, len(r.Data))
	}
	i.Lacuna("attach", server.URL()+"?second", file+"2")
	i.Lacuna("detach", file+"2")
	i.Check()
}

func TestDiskFullAtStart(t *testing.T) {
	i := newLacuna(t, "")
	i.smallRoot()
	server := sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), 32<<20)
	file := filepath.Join(i.Dir, "file")
	free := i.fillUp()
	i.Start("attach", server.URL(), file)
	<-i.Ended
	if exit := i.Keeper.ProcessState.ExitCode(); exit != int(control.ExitError) || !strings.Contains(i.Log.String(), "no space left") {
		t.Errorf("ended with %d: %s", exit, i.Log.String())
	}
	t.Logf("it says: %s", strings.TrimSpace(i.Log.String()))
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has left something: %v", err)
	}
	free()
	i.StartDaemon()
}
