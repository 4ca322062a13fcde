//go:build long

package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// The keeper ends a worker that does not stop within half a minute, but not one that
// serves on.
func TestStopWaitsForMinutes(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	a.Signal(syscall.SIGTERM)
	a.waitBusy()
	worker := a.Worker()
	instance.Pause(70 * time.Second)
	h.wantPattern(stormSeed, a.missing(), 10000)
	if s := a.Status(); !s.Stopping || len(s.Waits) != 1 || s.WorkerPID != worker {
		t.Errorf("status: stopping %t, waits for %q, worker %d, was %d", s.Stopping, s.Waits, s.WorkerPID, worker)
	}
	h.close()
	a.WaitEnd(0)
	a.wantGone()
}
