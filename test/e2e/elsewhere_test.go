package e2e

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// elsewhere is a shell in a mount namespace of its own, with copies of all mounts.
// ask has it run a line, and returns the line that it answers.
func elsewhere(t *testing.T) (ask func(line string) string, end func()) {
	t.Helper()
	sh := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `echo up; while read line; do eval "$line"; done`)
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	sh.Stderr = sh.Stdout
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = in.Close()
		late := time.AfterFunc(30*time.Second, func() { _ = sh.Process.Kill() })
		_ = sh.Wait()
		late.Stop()
	})
	t.Cleanup(end)
	lines := bufio.NewReader(out)
	next := func() string {
		line, err := lines.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	next()
	return func(line string) string {
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		return next()
	}, end
}

// Where both processes are killed and the file is mounted in another namespace only,
// the next start takes it away here and guards it there, until that is gone.
func TestBothKilledFileInAnotherNamespaceIsGuardedAgain(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.wantMissing()
	ask, end := elsewhere(t)
	s := a.Status()
	a.Kill(s.WorkerPID, s.KeeperPID)
	<-a.Ended
	a.StartDaemon()
	if points := instance.MountsBelow(a.Dir); len(points) > 0 {
		t.Errorf("mounted: %v", points)
	}
	s = a.Status()
	if len(s.Attached) != 1 || !s.Attached[0].Leaving || len(s.Unguarded) != 1 ||
		!strings.Contains(fmt.Sprint(s.Unguarded[0].Users), "in a mount namespace of its own") {
		t.Errorf("attached %+v, unguarded %+v", s.Attached, s.Unguarded)
	}
	if text := a.Lacuna("status"); !strings.Contains(text, "it is detached, and still in use") {
		t.Errorf("status says\n%s", text)
	}
	off := a.missing()
	want := fmt.Sprintf("%x", sha256.Sum256(pattern(stormSeed, off, 4096)))
	read := fmt.Sprintf("dd if=%s bs=4096 skip=%d count=1 2>/dev/null | sha256sum", a.file, off/4096)
	if got := ask(read); !strings.HasPrefix(got, want) {
		t.Errorf("the other namespace reads %q, want %s", got, want)
	}
	if _, err := a.Try("attach", a.server.URL(), a.file); instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), "in a mount namespace of its own") {
		t.Errorf("attach at the same place: %v", err)
	}
	end()
	instance.Eventually(t, 30*time.Second, func() error {
		if s := a.Status(); len(s.Attached) > 0 {
			return fmt.Errorf("attached: %+v", s.Attached)
		}
		return nil
	})
	if _, err := os.Lstat(a.file); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", a.file, err)
	}
	a.Lacuna("attach", a.server.URL(), a.file)
	a.wantMissing()
	a.Stop()
	a.wantGone()
}
