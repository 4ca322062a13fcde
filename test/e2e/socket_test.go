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
		a, b := newInstance(t, ""), newInstance(t, "")
		a.startDaemon()
		if replaced { // the worker, by one that takes the socket over
			worker := a.worker()
			a.killNow(worker)
			a.waitWorker(worker)
			a.waitReady()
		}
		socket := filepath.Join(a.root, "lacuna.sock")
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		// The flags of waitReady must find it.
		b.extra = []string{"--socket", socket}
		b.startDaemon()
		if replaced {
			worker := a.worker()
			a.killNow(worker)
			a.waitWorker(worker)
		}
		a.stop()
		b.status()
		b.stop()
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	}
}
