package e2e

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// A hydrate goes on when the worker that it asked has died, or was upgraded.
func TestHydrateGoesOnAcrossWorkers(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.server.Throttle(20*time.Millisecond, 256<<10) // of each response, of which there are four
	done := make(chan error, 1)
	go func() {
		_, err := a.Try("detach", "--hydrate", a.file)
		done <- err
	}()
	for n := range 4 {
		worker, before := a.Worker(), a.Status().Attached[0].Present
		instance.Eventually(t, 30*time.Second, func() error {
			if a.Status().Attached[0].Present <= before {
				return errors.New("nothing is fetched")
			}
			return nil
		})
		if n%2 == 0 {
			a.Kill(worker)
		} else {
			a.Signal(syscall.SIGHUP)
		}
		a.WaitWorker(worker)
		a.WaitReady()
	}
	select {
	case err := <-done:
		t.Fatalf("it ended early: %v", err)
	default:
	}
	a.server.Throttle(0, 0)
	a.Kill(a.Worker()) // responses that have begun stay slow
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h := hold(t, a.file)
	h.wantPattern(stormSeed, 0, attachedSize)
	h.close()
	if s := a.Status(); len(s.Attached) != 0 {
		t.Errorf("attached: %+v", s.Attached)
	}
}

// A hydrate of which the instance has ended says so.
func TestHydrateWhenTheInstanceEnds(t *testing.T) {
	a := attachedToDaemon(t, "")
	a.server.Throttle(20*time.Millisecond, 256<<10)
	done := make(chan error, 1)
	go func() {
		_, err := a.Try("hydrate", a.file)
		done <- err
	}()
	instance.Eventually(t, 30*time.Second, func() error {
		if a.Status().Attached[0].Present == 0 {
			return errors.New("nothing is fetched")
		}
		return nil
	})
	a.Stop()
	select {
	case err := <-done:
		if instance.ExitOf(err) != 1 {
			t.Errorf("hydrate: %v", err)
		} else {
			t.Log(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("hydrate hangs")
	}
	a.wantGone()
}
