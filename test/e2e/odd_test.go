package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// What a bind that failed has left with the keeper is not the next worker's.
func TestFailedBindThenWorkerKilled(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	other := filepath.Join(b.dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	makeHollow(t, filepath.Join(other, "blob"), 1<<20)
	if _, err := b.try("bind", other, "--devnode", b.devnode); exitOf(err) != 6 {
		t.Fatalf("bind at a devnode in use: %v", err)
	}
	// The same file again: it is marked for another directory already.
	again := filepath.Join(b.dir, "again")
	if err := os.Mkdir(again, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(b.path("blob"), filepath.Join(again, "blob")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.try("bind", again, "--devnode", b.devnode+"2"); err == nil {
		t.Fatal("one file is bound twice")
	}
	worker := b.worker()
	b.killNow(worker)
	b.waitWorker(worker)
	b.waitReady()
	if s := b.status(); len(s.Bound) != 1 || s.Bound[0].Dir != b.hollow || len(s.Broken) != 0 {
		t.Errorf("bound %+v, broken %+v", s.Bound, s.Broken)
	}
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	h.close()
	b.lacuna("bind", other, "--devnode", b.devnode+"3")
	b.lacuna("detach", other)
	b.lacuna("detach", b.hollow)
	b.daemon.kill()
}

// openTerminal makes a pseudoterminal; closing the master hangs it up.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var unlock, number int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
			t.Fatal(errno)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, terminal
}

// Closing the terminal of a command in the foreground ends it, as Ctrl-C does: the
// SIGHUP that comes with it is no upgrade.
func TestTerminalClosedEndsForeground(t *testing.T) {
	a := newAttached(t, "")
	master, terminal := openTerminal(t)
	a.terminal = terminal
	a.start("attach", a.server.URL(), a.file)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	a.waitReady()
	a.wantMissing()
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	<-a.ended
	a.wantGone()
	if strings.Contains(a.log.String(), "upgraded") {
		t.Error("it has upgraded itself")
	}
}
