package mount

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/sys"
)

// mounted makes and mounts e, and returns the path of its file.
func mounted(t *testing.T, e EROFS) string {
	t.Helper()
	made, err := e.Make()
	ok(t, err)
	target := t.TempDir()
	ok(t, made.MoveTo(target))
	ok(t, made.Close())
	t.Cleanup(func() { ok(t, Unmount(target, true)) })
	return filepath.Join(target, "data")
}

// optionsOf are the kernel's own words on the mount that has the file.
func optionsOf(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	ok(t, err)
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, " "+filepath.Dir(file)+" ") {
			return l
		}
	}
	t.Fatalf("%s is not mounted", file)
	return ""
}

func TestDirectReadsWhereTheDiskCan(t *testing.T) {
	content := make([]byte, 3<<20+77)
	rand.NewChaCha8([32]byte{1}).Read(content)
	e := oneFile(t, t.TempDir(), content)
	e.Direct = true
	n, err := sys.DirectAlignment(e.Devices[0])
	ok(t, err)
	file := mounted(t, e)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if options, is := optionsOf(t, file), n > 0 && n <= block; strings.Contains(options, "directio") != is {
		t.Errorf("alignment %d, mounted as %s", n, options)
	}
	e.Direct = false
	if options := optionsOf(t, mounted(t, e)); strings.Contains(options, "directio") {
		t.Errorf("not asked for, mounted as %s", options)
	}
	e.Direct, e.Devices = true, []string{filepath.Join(t.TempDir(), "none")}
	if _, err := e.Make(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
}

// Where a block is missing after all, as when it was found damaged, a direct read of
// it is stopped like any other, and gets what was written meanwhile.
func TestDirectReadsOfHolesAreStopped(t *testing.T) {
	const size = 2 << 20
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(content)
	dir := t.TempDir()
	e := oneFile(t, dir, content)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveFanotifyPreContent(dir))
	e.Direct = true
	device, err := os.OpenFile(e.Devices[0], os.O_RDWR, 0)
	ok(t, err)
	defer func() { ok(t, device.Close()) }()
	ok(t, errors.Join(device.Truncate(0), device.Truncate(size)))
	filled := answerWith(t, device, content, e.Devices[0])
	f, err := os.Open(mounted(t, e))
	ok(t, err)
	defer func() { ok(t, f.Close()) }()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, i := range rng.Perm(size / 65536) {
		off := int64(i)*65536 + rng.Int64N(65536)
		got := make([]byte, min(1+rng.Int64N(100000), size-off))
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, content[off:off+int64(len(got))]) {
			t.Fatalf("read of %d bytes at %d: wrong, %v", len(got), off, err)
		}
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if n := filled(); n != size {
		t.Errorf("%d bytes were asked for, not %d", n, size)
	}
}

// answerWith marks the file at path and writes what of content each event asks for
// through device, which was opened before, until the test ends. filled is how many
// bytes were asked for, each counted once.
func answerWith(t *testing.T, device *os.File, content []byte, path string) (filled func() int) {
	t.Helper()
	group, err := sys.FanotifyInit()
	ok(t, err)
	marked, err := sys.OpenPath(path)
	ok(t, err)
	ok(t, sys.FanotifyMark(group, marked))
	asked := make([]bool, len(content))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var failed error
		for {
			select {
			case <-stop:
				done <- failed
				return
			default:
				failed = errors.Join(failed, answerOne(group, device, content, asked))
			}
		}
	}()
	ended := false
	end := func() {
		if !ended {
			ended = true
			close(stop)
			ok(t, <-done)
		}
	}
	t.Cleanup(func() {
		end()
		ok(t, errors.Join(marked.Close(), group.Close()))
	})
	return func() (n int) {
		end()
		for _, is := range asked {
			if is {
				n++
			}
		}
		return n
	}
}

// answerOne answers one event, if one comes soon; with EIO where it cannot be filled.
func answerOne(group *sys.FD, device *os.File, content []byte, asked []bool) error {
	buf := make([]byte, sys.FanotifyEventSize)
	if ready, err := sys.WaitReadable(group, 20); err != nil || !ready {
		return err
	}
	n, err := sys.Read(group, buf)
	if errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	ev, _, err := sys.ParseFanotifyEvent(buf[:n])
	off, end := min(ev.Offset, uint64(len(content))), min(ev.Offset+ev.Count, uint64(len(content)))
	if err == nil {
		_, err = device.WriteAt(content[off:end], int64(off))
	}
	errno := syscall.Errno(0)
	if err != nil {
		errno = syscall.EIO
	}
	for i := off; i < end; i++ {
		asked[i] = true
	}
	return errors.Join(err, sys.FanotifyRespond(group, ev.FD, errno), sys.NewFD(ev.FD).Close())
}
