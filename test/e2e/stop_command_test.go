package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/test/instance"
)

// wantStatusOf tells whether the error of a command has that status and those words.
func wantStatusOf(t *testing.T, err error, status control.Exit, words ...string) {
	t.Helper()
	if instance.ExitOf(err) != int(status) {
		t.Errorf("%v, want status %d", err, status)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("it does not say %q: %v", w, err)
		}
	}
}

var starts = map[string]func(*testing.T, string) *attached{"daemon": attachedToDaemon, "foreground": attachedInForeground}

// What nobody uses is gone when `lacuna stop` returns, and so is the instance.
func TestStopCommand(t *testing.T) {
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			a := start(t, "")
			a.wantMissing()
			a.Lacuna("stop")
			a.WaitEnd(0)
			a.wantGone()
			_, err := a.Try("stop")
			wantStatusOf(t, err, control.ExitError, "no lacuna daemon listens")
		})
	}
}

// A stop that waits says for whom, is asked again and answers other commands for as
// long as it does, also in a worker that follows one that died.
func TestStopCommandWhileInUse(t *testing.T) {
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			a := start(t, "")
			h := hold(t, a.file)
			h.wantPattern(stormSeed, a.missing(), 10000)
			who := fmt.Sprintf("%s: process %d (e2e.test)", a.file, h.cmd.Process.Pid)
			stops := func() {
				t.Helper()
				_, err := a.Try("stop")
				wantStatusOf(t, err, control.ExitInUse, "it ends once nobody uses "+who, "hint: `lacuna status`")
				if s := a.Status(); !s.Stopping || len(s.Waits) != 1 || s.Waits[0] != who {
					t.Errorf("status: stopping %t, %q", s.Stopping, s.Waits)
				}
				_, err = a.Try("attach", a.server.URL(), a.file+"2")
				wantStatusOf(t, err, control.ExitError, "stopping")
				h.wantPattern(stormSeed, a.missing(), 10000)
			}
			stops()
			stops()
			worker := a.Worker()
			a.Kill(worker)
			a.WaitWorker(worker)
			stops()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			waits := a.Command(ctx, "stop", "--wait")
			if err := waits.Start(); err != nil {
				t.Fatal(err)
			}
			h.close()
			if err := waits.Wait(); err != nil {
				t.Errorf("stop --wait: %v", err)
			}
			a.WaitEnd(0)
			a.wantGone()
		})
	}
}

// A stop by signal goes on waiting for longer than the keeper waits for a worker that
// says nothing, and the file is served on; then it can be asked again.
func TestStopAnswersForAsLongAsItWaits(t *testing.T) {
	a := attachedToDaemon(t, "")
	h := hold(t, a.file)
	h.wantPattern(stormSeed, a.missing(), 10000)
	a.Signal(syscall.SIGTERM)
	a.waitBusy()
	if log := a.Log.String(); !strings.Contains(log, "`lacuna status` tells who is left") {
		t.Errorf("no hint: %s", log)
	}
	_, err := a.Try("stop")
	wantStatusOf(t, err, control.ExitInUse, fmt.Sprintf("process %d (e2e.test)", h.cmd.Process.Pid))
	worker := a.Worker()
	a.Signal(syscall.SIGTERM) // asked again it waits for nobody
	instance.Eventually(t, 30*time.Second, func() error {
		if instance.IsRunning(worker) {
			return errors.New("the worker runs")
		}
		return nil
	})
	_, err = a.Try("stop")
	wantStatusOf(t, err, control.ExitError, fmt.Sprintf("process %d has the cache", a.Keeper.Process.Pid))
	h.close()
	<-a.Ended
	if n := strings.Count(a.Log.String(), "undoing what the worker left"); n != 1 {
		t.Errorf("the keeper says %d times what stands", n)
	}
	a.wantGone()
}
