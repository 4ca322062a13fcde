package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/lacunafs/lacuna/test/instance"
)

// What a bind that failed has left with the keeper is not the next worker's.
func TestFailedBindThenWorkerKilled(t *testing.T) {
	b := newBound(t, map[string]int64{"blob": 1 << 20})
	b.connect(fills, 0)
	other := filepath.Join(b.Dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	makeHollow(t, filepath.Join(other, "blob"), 1<<20)
	if _, err := b.Try("bind", other, "--devnode", b.devnode); instance.ExitOf(err) != 6 {
		t.Fatalf("bind at a devnode in use: %v", err)
	}
	// The same file again: it is marked for another directory already.
	again := filepath.Join(b.Dir, "again")
	if err := os.Mkdir(again, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(b.path("blob"), filepath.Join(again, "blob")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Try("bind", again, "--devnode", b.devnode+"2"); err == nil {
		t.Fatal("one file is bound twice")
	}
	worker := b.Worker()
	b.Kill(worker)
	b.WaitWorker(worker)
	b.WaitReady()
	if s := b.Status(); len(s.Bound) != 1 || s.Bound[0].Dir != b.hollow || len(s.Broken) != 0 {
		t.Errorf("bound %+v, broken %+v", s.Bound, s.Broken)
	}
	h := hold(t, b.path("blob"))
	h.wantPattern(stormSeed, 0, 10000)
	h.close()
	b.Lacuna("bind", other, "--devnode", b.devnode+"3")
	b.Lacuna("detach", other)
	b.Lacuna("detach", b.hollow)
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
	a.Terminal = terminal
	a.StartForeground("attach", a.server.URL(), a.file)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	a.wantMissing()
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	<-a.Ended
	a.wantGone()
	if strings.Contains(a.Log.String(), "upgraded") {
		t.Error("it has upgraded itself")
	}
}
