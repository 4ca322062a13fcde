package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// waitBusy waits until a stopping instance has found the file in use.
func (i *lacuna) waitBusy() {
	i.t.Helper()
	instance.Eventually(i.t, 30*time.Second, func() error {
		if !strings.Contains(i.Log.String(), "waiting for what is in use") {
			return errors.New("it does not say that the file is in use")
		}
		return nil
	})
}

func TestStopServesOpenFileOn(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT} {
		for name, start := range map[string]func(*testing.T, string) *attached{"daemon": attachedToDaemon, "foreground": attachedInForeground} {
			t.Run(name+" "+sig.String(), func(t *testing.T) {
				a := start(t, "")
				h := hold(t, a.file)
				h.wantPattern(stormSeed, a.missing(), 10000)
				// As the terminal does it: all processes get it.
				if sig != syscall.SIGTERM {
					for _, pid := range instance.ProcessesOf(a.Dir) {
						if err := syscall.Kill(pid, sig); err != nil {
							t.Fatal(err)
						}
					}
				} else {
					a.Signal(sig)
				}
				a.waitBusy()
				for range 3 {
					h.wantPattern(stormSeed, a.missing(), 10000)
				}
				h.close()
				a.WaitEnd(0)
				a.wantGone()
			})
		}
	}
}

func TestStopAskedTwiceDeniesOpenFile(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	worker := a.Worker()
	a.Signal(syscall.SIGTERM)
	a.waitBusy()
	asked := time.Now()
	a.Signal(syscall.SIGTERM)
	// Until the worker has gone it serves on. Something stays missing for later.
	instance.Eventually(t, 40*time.Second, func() error {
		if a.next < attachedSize/2 {
			off := a.missing()
			r := h.read(off, 10000)
			if r.Errno != syscall.EIO && (r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, off, 10000))) {
				t.Fatalf("read at %d: %v, %d bytes", off, r.Errno, len(r.Data))
			}
		}
		if instance.IsRunning(worker) {
			return fmt.Errorf("worker %d runs", worker)
		}
		return nil
	})
	off := a.missing()
	t.Logf("missing data is denied %v after the second SIGTERM", time.Since(asked).Round(time.Millisecond))
	for range 3 {
		if r := h.read(off, 10000); r.Errno != syscall.EIO {
			t.Fatalf("read of missing data: %v", r.Errno)
		}
	}
	select {
	case <-a.Ended:
		t.Fatal("the keeper has gone while the file is open")
	case <-time.After(2 * time.Second):
	}
	if r := h.read(off, 10000); r.Errno != syscall.EIO {
		t.Fatalf("read of missing data: %v", r.Errno)
	}
	h.close()
	select {
	case <-a.Ended:
	case <-time.After(time.Minute):
		t.Fatal("the keeper stays")
	}
	a.wantGone()
}
