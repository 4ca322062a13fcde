package image

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// small starts an instance, and pushes an image of which something is missing when it
// is mounted.
func small(t *testing.T) (m *mounted, ref string) {
	t.Helper()
	image := formatOf("estargz").packAll(t, tarOf(t, dir("sub/"), file("data", string(toctest.Random(11, 1<<20)))))
	return start(t, ""), image.push(t, ocitest.New(t))
}

// tmpfsOn mounts one with a file until the test ends, or off is called.
func tmpfsOn(t *testing.T, dir string) (precious string, off func()) {
	t.Helper()
	if err := syscall.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	off = func() {
		if mounted {
			mounted = false
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Errorf("unmount what was mounted over: %v", err)
			}
		}
	}
	t.Cleanup(off)
	precious = filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return precious, off
}

// What somebody else has mounted over a mount is never taken away: not by the worker
// that stops, and not by the keeper that undoes what the worker left.
func TestStopLeavesWhatIsMountedOver(t *testing.T) {
	m, ref := small(t)
	precious, off := tmpfsOn(t, m.mount(ref, "mnt"))
	m.Signal(syscall.SIGTERM)
	instance.Eventually(t, 30*time.Second, func() error {
		if log := m.Log.String(); !strings.Contains(log, "what is mounted over it") {
			return errors.New("nobody waits for what is mounted over it")
		}
		return nil
	})
	m.Signal(syscall.SIGTERM) // wait for nobody
	instance.Eventually(t, 30*time.Second, func() error {
		if log := m.Log.String(); !strings.Contains(log, "undoing what the worker left") {
			return errors.New("the keeper does not try")
		}
		return nil
	})
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("it is taken away: %v", err)
	}
	off()
	select {
	case <-m.Ended:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	m.wantNoMounts()
}

func (m *mounted) wantNoMounts() {
	m.t.Helper()
	if points := instance.MountsBelow(m.Dir); len(points) > 0 {
		m.t.Errorf("mounted: %v", points)
	}
}

// The start after both processes were killed leaves it, too, and a worker that begins
// while it is there takes the mount below for what it is.
func TestStartUnderWhatIsMountedOver(t *testing.T) {
	for name, killed := range map[string]func(*mounted){
		"both": func(m *mounted) {
			s := m.Status()
			m.Kill(s.KeeperPID, s.WorkerPID)
			<-m.Ended
			m.StartDaemon()
		},
		"worker": func(m *mounted) {
			worker := m.WaitWorker(0)
			m.Kill(worker)
			m.WaitWorker(worker)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, ref := small(t)
			at := m.mount(ref, "mnt")
			precious, off := tmpfsOn(t, at)
			killed(m)
			if _, err := os.Stat(precious); err != nil {
				t.Errorf("it is taken away: %v", err)
			}
			if _, err := m.Try("umount", at); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), "what is mounted over it") {
				t.Errorf("umount: %v", err)
			}
			off()
			m.umount(at)
		})
	}
}

// As people have it who work in a chroot.
func TestUmountNamesWhatIsMountedIn(t *testing.T) {
	m, ref := small(t)
	at := m.mount(ref, "mnt")
	in := filepath.Join(at, "sub")
	_, off := tmpfsOn(t, in)
	if _, err := m.Try("umount", at); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), in) {
		t.Errorf("umount: %v", err)
	}
	off()
	m.umount(at)
}

// Where mounts are shared, as they are on most machines, a mount has copies in such
// namespaces as those of system services. They go with it, and hold up nobody.
func TestUmountTakesCopiesThatFollow(t *testing.T) {
	m, ref := small(t)
	shared := filepath.Join(m.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	_, off := tmpfsOn(t, shared)
	if err := syscall.Mount("", shared, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	ask, end := elsewhereAs(t, "slave")
	at := m.mount(ref, "shared/mnt")
	held := "exec 3<" + filepath.Join(at, "data") + " && echo held"
	if got := ask(held); got != "held" {
		t.Fatalf("the copy is not there: %s", got)
	}
	if _, err := m.Try("umount", at); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), "process ") {
		t.Errorf("umount while the copy is in use: %v", err)
	}
	if got := ask("exec 3<&- && echo closed"); got != "closed" {
		t.Error(got)
	}
	m.umount(at)
	if got := ask("grep -c " + at + " /proc/self/mountinfo"); got != "0" {
		t.Errorf("%s mounts are left in the other namespace", got)
	}
	end()
	off()
}

// What somebody else puts in the place while an image is prepared is not covered.
func TestPlaceIsTakenWhileAnImageIsPrepared(t *testing.T) {
	for name, c := range map[string]struct {
		take func(t *testing.T, at string)
		exit int
	}{
		"mounted on": {func(t *testing.T, at string) { tmpfsOn(t, at) }, 6},
		"not empty": {func(t *testing.T, at string) {
			if err := os.WriteFile(filepath.Join(at, "precious"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := ocitest.New(t)
			layer := tarOf(t, file("data", "x"))
			image := formatOf("tar").packAll(t, layer)
			ref := image.push(t, r)
			begun, goOn := make(chan struct{}, 100), make(chan struct{})
			r.Blob(layer, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				begun <- struct{}{}
				<-goOn
				http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(layer))
			}))
			m := start(t, "")
			at := filepath.Join(m.Dir, "mnt")
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := m.Try("mount", ref, at)
				ended <- err
			}()
			<-begun
			c.take(t, at)
			close(goOn)
			if err := <-ended; instance.ExitOf(err) != c.exit {
				t.Errorf("mount: %v", err)
			}
			if _, err := os.Stat(filepath.Join(at, "precious")); err != nil {
				t.Errorf("it is covered: %v", err)
			}
		})
	}
}
