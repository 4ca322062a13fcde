package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeClock fires every wait at once and notes it. Each look at it moves it on.
type fakeClock struct {
	mu    sync.Mutex
	at    time.Time
	step  time.Duration
	waits []time.Duration
	seen  func(n int) // called with the number of waits so far
}

func (c *fakeClock) clock() clock {
	return clock{
		now: func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.at = c.at.Add(c.step)
			return c.at
		},
		after: func(d time.Duration) (<-chan time.Time, func()) {
			c.mu.Lock()
			defer c.mu.Unlock()
			fired := make(chan time.Time, 1)
			if d >= time.Minute { // a time-out, not a wait
				return fired, func() {}
			}
			c.waits = append(c.waits, d)
			c.seen(len(c.waits))
			fired <- c.at
			return fired, func() {}
		},
	}
}

func TestWaitsBetweenStarts(t *testing.T) {
	const ms = time.Millisecond
	// The first worker is ready in all cases, or the keeper would end with it.
	want := []time.Duration{0, 0, 0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms,
		5000 * ms, 5000 * ms}
	for name, c := range map[string]struct {
		worker     string
		step       time.Duration
		want       []time.Duration
		unattended int
	}{
		"never ready again": {"fails", time.Second, want, 3},
		"short lives": {"crashes", time.Second, []time.Duration{0, 0, 0, 100 * ms, 200 * ms, 400 * ms,
			500 * ms, 500 * ms, 500 * ms, 500 * ms, 500 * ms}, 0},
		"good lives": {"crashes", goodLife, make([]time.Duration, len(want)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			fake := &fakeClock{step: c.step, seen: func(n int) {
				if n == len(want) {
					cancel()
				}
			}}
			var mu sync.Mutex
			var events []string
			note := func(format string, args ...any) {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, fmt.Sprintf(format, args...))
			}
			exit, err := Run(ctx, Options{
				Env:         append(os.Environ(), testRole+"=1", testWorker+"="+c.worker, "GORACE=atexit_sleep_ms=0"),
				StopTimeout: time.Hour, HandOverTimeout: time.Hour,
				OnEvent: func(e Event) { note("%s", e.What) },
				Unattended: func(ctx context.Context, held Held) error {
					note("unattended %s", names(held))
					<-ctx.Done()
					note("attended")
					return nil
				},
				clock: fake.clock(),
			})
			if exit != 0 || err != nil {
				t.Errorf("ended with %d, %v", exit, err)
			}
			if !slices.Equal(fake.waits, c.want) {
				t.Errorf("waits %v", fake.waits)
			}
			if got := strings.Count(strings.Join(events, ";"), "unattended event pipe-r pipe-w table;attended"); got < c.unattended {
				t.Errorf("unattended %d times: %q", got, events)
			}
			if c.unattended == 0 && strings.Contains(strings.Join(events, ";"), "unattended") {
				t.Errorf("readers were denied in a short wait: %q", events)
			}
		})
	}
}

func TestWaitAfterManyEndsIsShortUntilNoneIsReady(t *testing.T) {
	var b backoff
	for range 20 {
		b.next(0, true)
	}
	for n := range patientStarts {
		if wait := b.next(0, false); wait != readyWait {
			t.Errorf("after %d that were not ready: %v", n+1, wait)
		}
	}
	if wait := b.next(0, false); wait != longestWait {
		t.Errorf("after one more: %v", wait)
	}
	if wait := b.next(0, true); wait != readyWait {
		t.Errorf("after one that was ready: %v", wait)
	}
}

func TestProgramThatVanishesIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/lacuna"
	copyProgram(t, path, "1")
	f := startFamily(t, path, "")
	up := f.expect("up ")
	if err := os.Rename(path, path+"-away"); err != nil {
		t.Fatal(err)
	}
	f.signal(number(t, up, "pid"), syscall.SIGKILL)
	f.expect("event " + StartFailed)
	f.expect("unattended event pipe-r pipe-w table")
	f.expect("attended")
	if err := os.Rename(path+"-away", path); err != nil {
		t.Fatal(err)
	}
	if got := field(t, f.expect("up "), "held"); got != allHeld {
		t.Errorf("held %s", got)
	}
	f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
	f.expectEnd()
}

func TestPanicInUnattendedIsAnEvent(t *testing.T) {
	err := guard(func() error { panic("boom") })
	if err == nil || !strings.Contains(err.Error(), "keeper: internal error: boom") {
		t.Error(err)
	}
	if err := guard(func() error { return errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
