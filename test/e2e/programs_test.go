package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

// Programs that do not just read: each gets the bytes of the source from a file
// of which little is there.

// present is how much of the attached file is there.
func (a *attached) present() int64 {
	a.t.Helper()
	s := a.Status()
	if len(s.Attached) != 1 {
		a.t.Fatalf("attached: %+v", s.Attached)
	}
	return s.Attached[0].Present
}

// do runs a program that must succeed, and returns its output.
func (a *attached) do(argv ...string) string {
	a.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	if path, err := exec.LookPath("/usr/sbin/" + argv[0]); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		a.t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// wantWhole compares the file at path with the source.
func (a *attached) wantWhole(path string) {
	a.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	a.wantBytes(path, f)
}

func (a *attached) wantBytes(what string, r io.Reader) {
	a.t.Helper()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:n], pattern(stormSeed, off, n)) {
			a.t.Fatalf("%s: wrong bytes in [%d,+%d)", what, off, n)
		}
		if err != nil {
			if total := off + int64(n); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || total != attachedSize {
				a.t.Fatalf("%s: %v after %d bytes", what, err, total)
			}
			return
		}
	}
}

func TestMappingFetchesWhatIsTouched(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	touch := func(how string, off int64, n int) {
		t.Helper()
		r := h.ask(holderRequest{Off: off, Len: n, Map: how})
		if r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, off, n)) {
			t.Fatalf("touched [%d,+%d): %v, %d bytes", off, n, r.Errno, len(r.Data))
		}
	}
	touch("random", 0, 0)
	if n := a.present(); n != 0 {
		t.Errorf("mapping the file has fetched %d bytes", n)
	}
	pages := int64(0)
	for _, off := range []int64{40<<20 + 5, 0, attachedSize - 1, 20 << 20} {
		touch("random", off, 1)
		pages++
	}
	// A folio may have four pages, and what is asked for is widened a little.
	n := a.present()
	t.Logf("%d pages touched at random: %d bytes fetched", pages, n)
	if n < pages*4096 || n > pages*64<<10 {
		t.Errorf("%d bytes were fetched for %d pages", n, pages)
	}
	// Without madvise(2) the kernel reads around what is touched.
	touch("normal", 10<<20, 10)
	t.Logf("and one page, read around: %d bytes", a.present()-n)
	if more := a.present() - n; more > 4<<20 {
		t.Errorf("%d bytes were fetched for a page", more)
	}
	touch("normal", 30<<20-50, 100)
	h.close()
	a.Lacuna("detach", a.file)
}

func TestMappingOfWhatCannotBeFetched(t *testing.T) {
	a := attachedToDaemon(t, "deadline = \"2s\"")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, 0, 4096)
	a.server.Always(sourcetest.Status(404, ""))
	if r := h.ask(holderRequest{Off: 30 << 20, Len: 1, Map: "normal"}); r.Errno != syscall.EFAULT {
		t.Errorf("got %v, %v; want SIGBUS", r.Errno, r.Data)
	}
	a.server.Always(nil)
	a.wantAt(30 << 20)
	h.close()
	a.Lacuna("detach", a.file)
}

// Numbers of lseek(2), uapi/linux/fs.h.
const (
	seekData = 3
	seekHole = 4
)

func TestWhoLooksForHolesFindsNone(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.wantAt(10 << 20) // a hole before it, and one behind
	f, err := os.Open(a.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{0, 5 << 20, 10 << 20, attachedSize - 1} {
		data, err := f.Seek(off, seekData)
		hole, err2 := f.Seek(off, seekHole)
		if err != nil || err2 != nil || data != off || hole != attachedSize {
			t.Errorf("from %d: data at %d, hole at %d: %v, %v", off, data, hole, err, err2)
		}
	}
	if n := a.present(); n > 1<<20 {
		t.Errorf("looking has fetched: %d bytes are present", n)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	a.Lacuna("detach", a.file)
}

// Each begins with a file of which little is there.
func TestCopiesOfAnIncompleteFileAreWhole(t *testing.T) {
	for name, argv := range map[string][]string{
		"cp":          {"cp", "FILE", "OUT"},
		"cp sparse":   {"cp", "--sparse=always", "FILE", "OUT"},
		"dd sparse":   {"dd", "if=FILE", "of=OUT", "bs=64k", "conv=sparse", "status=none"},
		"install":     {"install", "-m", "600", "FILE", "OUT"},
		"tar sparse":  {"sh", "-c", "tar -C $(dirname FILE) -cSf - file | tar -xOf - >OUT"},
		"splice":      {"sh", "-c", "cat FILE | cat >OUT"},
		"other mount": {"unshare", "-m", "cp", "FILE", "OUT"},
	} {
		t.Run(name, func(t *testing.T) {
			a := attachedToDaemon(t, "")
			a.wantAt(40 << 20)
			out := filepath.Join(a.Dir, "out")
			for i := range argv {
				argv[i] = strings.NewReplacer("FILE", a.file, "OUT", out).Replace(argv[i])
			}
			a.do(argv...)
			a.wantWhole(out)
			a.Lacuna("detach", a.file)
		})
	}
}

func TestLoopDeviceOverAnIncompleteFile(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.wantAt(40 << 20)
	loop := strings.TrimSpace(a.do("losetup", "--read-only", "--find", "--show", a.file))
	gone := false
	t.Cleanup(func() {
		if !gone {
			a.do("losetup", "--detach", loop)
		}
	})
	if _, err := a.Try("detach", a.file); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), "the loop device "+loop) {
		t.Errorf("detach below a loop device: %v", err)
	}
	a.wantWhole(loop)
	gone = true
	a.do("losetup", "--detach", loop)
	a.wantDetached()
}

// wantDetached detaches once the last user is gone, who goes when it likes.
func (a *attached) wantDetached() {
	a.t.Helper()
	instance.Eventually(a.t, 20*time.Second, func() error {
		_, err := a.Try("detach", a.file)
		return err
	})
}

// A file-backed EROFS has no direct I/O of its own: the kernel refuses to open so.
func TestDirectReads(t *testing.T) {
	a := attachedToDaemon(t, "")
	f, err := os.OpenFile(a.file, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err == nil {
		defer f.Close()
	}
	t.Logf("open with O_DIRECT: %v", err)
	if err != nil && !errors.Is(err, syscall.EINVAL) {
		t.Errorf("open: %v", err)
	}
	if err == nil {
		a.wantBytes(a.file, f)
	}
	a.Lacuna("detach", a.file)
}

// loader is what runs dynamic programs that are not executable.
func loader(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/lib64/ld-linux-*.so.*")
	if err != nil || len(found) == 0 {
		t.Fatalf("no dynamic loader: %v", err)
	}
	return found[0]
}

// An attached file is not executable; the loader maps a program all the same.
func TestProgramRunsFromAnIncompleteFile(t *testing.T) {
	i := newLacuna(t, "")
	program, err := os.ReadFile("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	server := sourcetest.NewServer(t, append(program, make([]byte, 32<<20)...)) // which nobody looks at
	i.StartDaemon()
	a := &attached{lacuna: i, server: server, file: filepath.Join(i.Dir, "file")}
	a.Lacuna("attach", server.URL(), a.file)
	if err := exec.Command(a.file).Run(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("exec: %v", err)
	}
	if out := a.do(loader(t), a.file, "-c", "echo $((6*7))"); out != "42\n" {
		t.Errorf("it says %q", out)
	}
	s := a.Status().Attached[0]
	t.Logf("fetched %d bytes of %d", s.Present, s.Size)
	if s.Complete || s.Misses == 0 {
		t.Errorf("complete: %v, %d misses", s.Complete, s.Misses)
	}
	a.wantDetached()
}

// Sizes that are no multiples of anything, down to nothing.
func TestFilesOfEverySize(t *testing.T) {
	i := newLacuna(t, "")
	i.StartDaemon()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 300001, 1 << 20} {
		data := pattern(stormSeed, 7, size)
		server := sourcetest.NewServer(t, data)
		server.SetETag("") // the date is what it is known by
		file := filepath.Join(i.Dir, fmt.Sprint("file", size))
		i.Lacuna("attach", server.URL(), file)
		st, err := os.Stat(file)
		if err != nil || st.Size() != int64(size) || st.Mode() != 0o444 || st.ModTime().UTC().Format("2006-01-02") != "2026-01-02" {
			t.Errorf("%d bytes: %v, %v", size, st, err)
		}
		if size > 0 {
			h := hold(t, file)
			tail := min(size, 5000)
			r := h.read(int64(size-tail), 2*tail)
			if r.Errno != 0 || !bytes.Equal(r.Data, data[size-tail:]) {
				t.Errorf("tail of %d bytes: %v, %d bytes", size, r.Errno, len(r.Data))
			}
			// Behind the end, the last page of a mapping is zeros.
			page := size &^ 4095
			if m := h.ask(holderRequest{Off: int64(size - 1), Len: 1, Map: "normal"}); size > page && (m.Errno != 0 || m.Data[0] != data[size-1]) {
				t.Errorf("last byte of %d, mapped: %v", size, m)
			}
			h.close()
		}
		got, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %v, %d bytes", size, err, len(got))
		}
		i.Lacuna("detach", "--hydrate", file)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, detached: %v, %d bytes", size, err, len(got))
		}
	}
	i.Check()
}

// A file that is too large says so, and leaves nothing.
func TestFileThatIsTooLarge(t *testing.T) {
	a := newAttached(t, "")
	a.StartDaemon()
	for _, size := range []int64{16<<40 - 4096, 17 << 40, 1 << 62} {
		server := sourcetest.NewServerAt(t, zeros{}, size)
		_, err := a.Try("attach", server.URL(), a.file)
		if instance.ExitOf(err) != 1 || !strings.Contains(err.Error(), "16 TiB") {
			t.Errorf("%d bytes: %v", size, err)
		}
		a.wantNoFile()
		if left, err := filepath.Glob(filepath.Join(a.Root, "objects/*/*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
