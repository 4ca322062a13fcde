package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// shown is a mounted image of which a second place shows what is missing.
type shown struct {
	*mounted
	dir, place string
	data       []byte
	reader     *ondemandtest.Reader
	next       int64
	gone       bool
}

// places are ways to show a mount at a second place that umount(2) of the first does
// not find busy. told is how messages name the place.
var places = map[string]struct {
	show func(t *testing.T, dir, place string)
	told string
}{
	"overlay": {overlayOn, "an overlay at "},
	"overlay of a directory in it, told a relative path": {func(t *testing.T, dir, place string) {
		overlayFrom(t, dir, "sub", place)
	}, "an overlay"},
	"bind copy": {func(t *testing.T, dir, place string) {
		if err := syscall.Mount(filepath.Join(dir, "sub"), place, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}, "a mount of it at "},
}

func overlayOn(t *testing.T, dir, place string) {
	t.Helper()
	empty := place + "-empty"
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("overlay", place, "overlay", 0, "lowerdir="+filepath.Join(dir, "sub")+":"+empty); err != nil {
		t.Fatal(err)
	}
}

// overlayFrom mounts an overlay whose only name of its lower directory is relative.
func overlayFrom(t *testing.T, dir, lower, place string) {
	t.Helper()
	empty := place + "-empty"
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "sh", "-c", `cd "$1" && mount -i -t overlay -o "lowerdir=$2:$3" overlay "$4"`, "sh", dir, lower, empty, place)
}

const shownSize = 4 << 20

// show mounts an image, and shows it at a second place too.
func show(t *testing.T, how string) *shown {
	t.Helper()
	s := &shown{data: toctest.Random(21, shownSize)}
	image := formatOf("estargz").packAll(t, tarOf(t, dir("sub/"), file("sub/data", string(s.data)), file("sub/other", string(toctest.Random(22, 4<<20)))))
	s.mounted = start(t, "")
	s.dir = s.mount(image.push(t, ocitest.New(t)), "mnt")
	s.place = filepath.Join(s.Dir, "place")
	if err := os.Mkdir(s.place, 0o755); err != nil {
		t.Fatal(err)
	}
	s.reader = ondemandtest.StartReader(t)
	t.Cleanup(s.hide)
	places[how].show(t, s.dir, s.place)
	return s
}

// hide takes the second place away.
func (s *shown) hide() {
	if s.gone {
		return
	}
	s.gone = true
	if err := syscall.Unmount(s.place, 0); err != nil {
		s.t.Errorf("unmount %s: %v", s.place, err)
	}
}

// wantMissing wants right bytes of what nobody has read yet, at the second place.
func (s *shown) wantMissing() {
	s.t.Helper()
	off := s.next
	s.next += 256 << 10
	if s.next > shownSize {
		s.t.Fatal("everything was read")
	}
	got := s.reader.Read(filepath.Join(s.place, "data"), off, 10_000)
	if got.Errno != 0 || !bytes.Equal(got.Data, s.data[off:off+10_000]) {
		s.t.Errorf("read at %d: %v, %d bytes", off, got.Errno, len(got.Data))
	}
}

// What else shows a mount is served for as long as it does: after umount, or umount
// --lazy where it is found to be used, after a worker's death and an upgrade.
func TestShownElsewhereIsServedAfterUmount(t *testing.T) {
	for how, place := range places {
		t.Run(how, func(t *testing.T) {
			s := show(t, how)
			s.wantMissing()
			if _, err := s.Try("umount", s.dir); err == nil {
				if !strings.Contains(how, "relative") {
					t.Error("umount does not find it in use")
				}
			} else {
				if instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), place.told+s.place) {
					t.Errorf("umount: %v", err)
				}
				s.wantMissing()
				s.Lacuna("umount", "--lazy", s.dir)
			}
			s.wantMissing()
			s.wantLeaving()
			worker := s.WaitWorker(0)
			s.Kill(worker)
			s.wantMissing()
			s.WaitWorker(worker)
			s.WaitReady()
			s.wantLeaving()
			s.wantMissing()
			s.upgrade()
			s.wantLeaving()
			s.wantMissing()
			s.hide()
			s.wantReleased()
		})
	}
}

// wantLeaving wants status to tell that the mount is gone and still used.
func (s *shown) wantLeaving() {
	s.t.Helper()
	at := s.Status().Mounted
	if len(at) != 1 || !at[0].Leaving || at[0].Dir != s.dir {
		s.t.Fatalf("status has %+v", at)
	}
	if text := s.Lacuna("status"); !strings.Contains(text, "it is unmounted, and still in use") {
		s.t.Errorf("status says\n%s", text)
	}
	if points := instance.MountsBelow(s.dir); len(points) > 0 {
		s.t.Errorf("mounted: %v", points)
	}
	if s.wantHeld(); s.marks() == 0 {
		s.t.Error("nothing is marked")
	}
}

// wantReleased wants nothing to be left of what was mounted: no entry in status, no
// mark and no descriptor in the worker, no directory.
func (s *shown) wantReleased() {
	s.t.Helper()
	instance.Eventually(s.t, 30*time.Second, func() error {
		if at := s.Status().Mounted; len(at) > 0 {
			return fmt.Errorf("status has %+v", at)
		}
		return nil
	})
	if n := s.marks(); n != 0 {
		s.t.Errorf("%d files are marked still", n)
	}
	if open := s.open(); len(open) > 0 {
		s.t.Errorf("open still: %q", open)
	}
	if _, err := os.Lstat(s.dir); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("%s is still there: %v", s.dir, err)
	}
}

func (s *shown) wantHeld() {
	s.t.Helper()
	if len(s.open()) == 0 {
		s.t.Error("no object is open")
	}
}

// open are the files of objects that the worker has open.
func (s *shown) open() (names []string) {
	s.t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.WaitWorker(0)))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && strings.HasPrefix(name, filepath.Join(s.Root, "objects")) {
			names = append(names, name)
		}
	}
	return names
}

// marks counts the marks of the worker's fanotify groups (proc_pid_fdinfo(5)).
func (s *shown) marks() (n int) {
	s.t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", s.WaitWorker(0)))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err == nil {
			n += strings.Count(string(text), "fanotify ino:")
		}
	}
	return n
}

// A stop says who holds what is shown elsewhere, serves it until that is gone, and
// ends well then.
func TestStopSaysWhoShowsAMountElsewhere(t *testing.T) {
	for how, place := range places {
		for _, unmounted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, unmounted before: %v", how, unmounted), func(t *testing.T) {
				s := show(t, how)
				if unmounted {
					s.Lacuna("umount", "--lazy", s.dir)
				}
				s.wantMissing()
				s.Signal(syscall.SIGTERM)
				want := place.told
				if !strings.Contains(how, "relative") {
					want += s.place
				}
				instance.Eventually(t, 20*time.Second, func() error {
					if log := s.Log.String(); !strings.Contains(log, want) || !strings.Contains(log, "waiting for what is in use") {
						return fmt.Errorf("the log does not say %q", want)
					}
					return nil
				})
				s.wantMissing()
				s.wantMissing()
				s.hide()
				s.WaitEnd(0)
			})
		}
	}
}

// Who comes to show it while the instance stops is not cut off silently: when the
// instance waits no longer, what is missing is an error, and what is present is right.
func TestStopThatDoesNotWaitDeniesTheOverlay(t *testing.T) {
	s := show(t, "overlay")
	s.wantMissing()
	s.Signal(syscall.SIGTERM)
	instance.Eventually(t, 20*time.Second, func() error {
		if !strings.Contains(s.Log.String(), "waiting for what is in use") {
			return errors.New("it does not say that it waits")
		}
		return nil
	})
	worker := s.WaitWorker(0)
	s.Signal(syscall.SIGTERM) // asked twice, it waits for nobody
	instance.Eventually(t, 20*time.Second, func() error {
		if instance.IsRunning(worker) {
			return errors.New("the worker runs")
		}
		return nil
	})
	off := int64(shownSize - 20_000)
	if got := s.reader.Read(filepath.Join(s.place, "data"), off, 10_000); got.Errno != syscall.EIO {
		t.Errorf("read of what is missing: %v, %d bytes", got.Errno, len(got.Data))
	}
	if got := s.reader.Read(filepath.Join(s.place, "data"), 0, 10_000); got.Errno != 0 || !bytes.Equal(got.Data, s.data[:10_000]) {
		t.Errorf("read of what is present: %v, %d bytes", got.Errno, len(got.Data))
	}
	select {
	case <-s.Ended:
		t.Error("the keeper has gone while the overlay stands")
	default:
	}
	s.hide()
	select {
	case <-s.Ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the keeper stays")
	}
}
