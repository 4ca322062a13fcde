package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

// bound is an instance that serves a directory of hollow files.
type bound struct {
	*lacuna
	hollow, devnode string
	reader          *ondemandtest.Reader
	daemon          *program // that start has started last
}

// newBound serves files of the given sizes, from a lacuna daemon.
func newBound(t *testing.T, sizes map[string]int64) *bound {
	t.Helper()
	b := &bound{lacuna: newLacuna(t, fmt.Sprintf("deadline = %q\n", stormDeadline)), reader: ondemandtest.StartReader(t)}
	b.hollow, b.devnode = filepath.Join(b.Dir, "hollow"), filepath.Join(b.Dir, "devnode")
	if err := os.Mkdir(b.hollow, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, size := range sizes {
		makeHollow(t, filepath.Join(b.hollow, name), size)
	}
	b.StartDaemon()
	b.Lacuna("bind", b.hollow, "--devnode", b.devnode)
	return b
}

func makeHollow(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (b *bound) order(behaviour string, delay time.Duration) daemonOrder {
	return daemonOrder{Socket: b.devnode, Dir: b.hollow, Pattern: stormSeed, Behaviour: behaviour, Delay: delay}
}

// connect starts an own daemon.
func (b *bound) connect(behaviour string, delay time.Duration) *program {
	b.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	b.daemon = launch(b.t, b.order(behaviour, delay).env(b.t), exe)
	return b.daemon
}

// disconnect kills the daemon and waits until that is known.
func (b *bound) disconnect() {
	b.t.Helper()
	b.daemon.kill()
	instance.Eventually(b.t, 10*time.Second, func() error {
		if s := b.Status(); s.Bound[0].DaemonPID != 0 {
			return fmt.Errorf("daemon %d is connected", s.Bound[0].DaemonPID)
		}
		return nil
	})
}

func (b *bound) path(name string) string { return filepath.Join(b.hollow, name) }

// atOnce is well below the deadline: what comes within it has not waited for that.
const atOnce = stormDeadline * 2 / 3

// wantErrno reads something missing, and wants that error at once.
func (b *bound) wantErrno(want syscall.Errno, off int64) {
	b.t.Helper()
	select {
	case r := <-b.reader.Start(b.path("blob"), off, 4096):
		if r.Errno != want || r.Err != nil || len(r.Data) > 0 {
			b.t.Errorf("read at %d: %v %v with %d bytes, not %v", off, r.Errno, r.Err, len(r.Data), want)
		}
	case <-time.After(atOnce):
		b.t.Fatalf("the read at %d has not come back after %v", off, atOnce)
	}
}

func TestBindExamplesServeReaders(t *testing.T) {
	instance.NeedKernel(t)
	built := filepath.Join(t.TempDir(), "daemon")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", built, "../../examples/go").CombinedOutput(); err != nil {
		t.Fatalf("build the Go example: %v: %s", err, out)
	}
	for name, command := range map[string][]string{
		"python": {"python3", "../../examples/python/daemon.py"},
		"shell":  {"sh", "../../examples/shell/daemon.sh"},
		"go":     {built},
	} {
		t.Run(name, func(t *testing.T) {
			sizes := map[string]int64{"blob": 4<<20 + 1234, "with blank": 4096, "one": 1}
			b := newBound(t, sizes)
			full := filepath.Join(b.Dir, "full")
			if err := os.Mkdir(full, 0o700); err != nil {
				t.Fatal(err)
			}
			for leaf, size := range sizes {
				if err := os.WriteFile(filepath.Join(full, leaf), pattern(stormSeed, 0, int(size)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			launch(t, "", append(command, b.devnode, b.hollow, full)...)
			var all sync.WaitGroup
			for leaf, size := range sizes {
				for off := int64(0); off < size; off += 300_001 {
					n := int(min(300_001, size-off))
					all.Go(func() {
						r := b.reader.Read(b.path(leaf), off, n)
						if r.Errno != 0 || r.Err != nil || !bytes.Equal(r.Data, pattern(stormSeed, off, n)) {
							t.Errorf("%s [%d,+%d): %v %v, %d bytes", leaf, off, n, r.Errno, r.Err, len(r.Data))
						}
					})
				}
			}
			all.Wait()
			if s := b.Status(); s.Bound[0].Present != s.Bound[0].Size {
				t.Errorf("bound: %+v", s.Bound[0])
			}
		})
	}
}

func TestBindWithoutDaemonFailsAtOnce(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.wantErrno(syscall.EIO, 0)
	b.connect(fills, 0)
	r := b.reader.Read(b.path("blob"), 4000, 200)
	if r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 4000, 200)) {
		t.Fatalf("read: %v", r.Errno)
	}
	b.disconnect()
	b.wantErrno(syscall.EIO, 512<<10)
	// What is present needs no daemon.
	if r := b.reader.Read(b.path("blob"), 0, 8192); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 0, 8192)) {
		t.Fatalf("read of what is present: %v", r.Errno)
	}
}

func TestBindDoneWithoutDataIsDenied(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(lies, 0)
	for off := int64(0); off < 1<<20; off += 256 << 10 {
		b.wantErrno(syscall.EIO, off)
	}
	b.disconnect()
	b.connect(fails, 0)
	b.wantErrno(syscall.ENOSPC, 0)
}

func TestBindSecondDaemonIsRefused(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, err = tryLaunch(t, b.order(fills, 0).env(t), exe)
	if err == nil || !strings.Contains(err.Error(), "is the daemon already") {
		t.Errorf("the second daemon: %v", err)
	}
	if r := b.reader.Read(b.path("blob"), 0, 4096); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 0, 4096)) {
		t.Errorf("the first one serves no more: %v", r.Errno)
	}
}

func TestBindSleepersGetErrorWhenDaemonDies(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 64 << 20})
	b.connect(sleeps, 0)
	const sleepers = 200
	var results []<-chan ondemandtest.Result
	for n := range sleepers {
		results = append(results, b.reader.Start(b.path("blob"), int64(n)*(256<<10), 4096))
	}
	instance.Eventually(t, 20*time.Second, func() error {
		if s := b.Status(); s.Requests.Pending != sleepers {
			return fmt.Errorf("%d requests pending", s.Requests.Pending)
		}
		return nil
	})
	b.daemon.kill()
	for n, c := range results {
		select {
		case r := <-c:
			if r.Errno != syscall.EIO || len(r.Data) > 0 {
				t.Errorf("reader %d: %v, %d bytes", n, r.Errno, len(r.Data))
			}
		case <-time.After(atOnce):
			t.Fatalf("reader %d sleeps on", n)
		}
	}
	b.connect(fills, 0)
	if r := b.reader.Read(b.path("blob"), 0, 4096); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, 0, 4096)) {
		t.Errorf("the next daemon does not serve: %v", r.Errno)
	}
}

func TestBindUnbindLeavesFiles(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	if r := b.reader.Read(b.path("blob"), 0, 4096); r.Errno != 0 {
		t.Fatal(r.Errno)
	}
	b.Lacuna("detach", b.hollow)
	if _, err := os.Lstat(b.devnode); err == nil {
		t.Error("the socket is left")
	}
	if r := b.reader.Read(b.path("blob"), 0, 8192); r.Errno != 0 || !bytes.Equal(r.Data, append(pattern(stormSeed, 0, 4096), make([]byte, 4096)...)) {
		t.Errorf("an ordinary sparse file reads: %v", r.Errno)
	}
	b.daemon.kill()
}
