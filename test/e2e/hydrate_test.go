package e2e

import (
	"errors"
	"syscall"
	"testing"
	"time"
)

// A hydrate goes on when the worker that it asked has died, or was upgraded.
func TestHydrateGoesOnAcrossWorkers(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.server.Throttle(20*time.Millisecond, 2<<20) // of each response
	done := make(chan error, 1)
	go func() {
		_, err := a.try("detach", "--hydrate", a.file)
		done <- err
	}()
	for n := range 4 {
		worker, before := a.worker(), a.status().Attached[0].Present
		eventually(t, 30*time.Second, func() error {
			if a.status().Attached[0].Present <= before {
				return errors.New("nothing is fetched")
			}
			return nil
		})
		if n%2 == 0 {
			a.killNow(worker)
		} else {
			a.signal(syscall.SIGHUP)
		}
		a.waitWorker(worker)
		a.waitReady()
	}
	select {
	case err := <-done:
		t.Fatalf("it ended early: %v", err)
	default:
	}
	a.server.Throttle(0, 0)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h := hold(t, a.file)
	h.wantPattern(stormSeed, 0, attachedSize)
	h.close()
	if s := a.status(); len(s.Attached) != 0 {
		t.Errorf("attached: %+v", s.Attached)
	}
}

// A hydrate of which the instance has ended says so.
func TestHydrateWhenTheInstanceEnds(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.server.Throttle(20*time.Millisecond, 1<<20)
	done := make(chan error, 1)
	go func() {
		_, err := a.try("hydrate", a.file)
		done <- err
	}()
	eventually(t, 30*time.Second, func() error {
		if a.status().Attached[0].Present == 0 {
			return errors.New("nothing is fetched")
		}
		return nil
	})
	a.stop()
	select {
	case err := <-done:
		if exitOf(err) != 1 {
			t.Errorf("hydrate: %v", err)
		} else {
			t.Log(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("hydrate hangs")
	}
	a.wantGone()
}
