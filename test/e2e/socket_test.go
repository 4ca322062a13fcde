package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// An instance whose control socket was removed, and made anew by another
// instance, leaves that one's alone when it ends.
func TestStopLeavesAnothersSocket(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		a, b := newLacuna(t, ""), newLacuna(t, "")
		a.StartDaemon()
		if replaced { // the worker, by one that takes the socket over
			worker := a.Worker()
			a.Kill(worker)
			a.WaitWorker(worker)
			a.WaitReady()
		}
		socket := filepath.Join(a.Root, "lacuna.sock")
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		// The flags of waitReady must find it.
		b.Extra = []string{"--socket", socket}
		b.StartDaemon()
		if replaced {
			worker := a.Worker()
			a.Kill(worker)
			a.WaitWorker(worker)
		}
		a.Stop()
		b.Status()
		b.Stop()
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	}
}
