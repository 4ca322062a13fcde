package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
)

const (
	// holderWait is how long a command waits for the socket of the process that has
	// the cache, or for that process to end: it may just have been started, or end.
	holderWait = 5 * time.Second
	// startWait is how long a command that finds nobody waits before it serves by
	// itself, or gives up: a daemon that was started in the same breath, as by a script, is to be
	// the one that does.
	startWait = 100 * time.Millisecond
	dialPause = 20 * time.Millisecond
)

// dialUnless connects to the daemon; nil where none listens, or where the
// command is to do the work itself.
func (a *app) dialUnless(ctx context.Context, foreground bool, cfg config.Config) (*control.Client, error) {
	if foreground {
		return nil, nil
	}
	client, err := a.dial(ctx, cfg)
	if errors.Is(err, control.ErrNotRunning) {
		return nil, nil
	}
	return client, err
}

// dial connects to the instance. Where a process has the cache and does not listen
// yet, it waits for that, and where nobody has it, for somebody to come.
func (a *app) dial(ctx context.Context, cfg config.Config) (*control.Client, error) {
	began := time.Now()
	for free := began; ; {
		client, err := control.Dial(ctx, cfg.Socket)
		if !errors.Is(err, control.ErrNotRunning) {
			return client, err
		}
		// Who may not look at the cache is told so by what comes next.
		now := time.Now()
		if pid, lookErr := cache.Holder(cfg.Root); lookErr == nil && pid != 0 {
			free = now
		}
		if now.Sub(began) >= holderWait || now.Sub(free) >= startWait {
			return nil, err
		}
		if err := pauseFor(ctx, dialPause); err != nil {
			return nil, err
		}
	}
}

// nobodyListens is err of dial, and says so where a process has the cache.
func nobodyListens(cfg config.Config, err error) error {
	pid, lookErr := cache.Holder(cfg.Root)
	if lookErr != nil || pid == 0 {
		return err
	}
	return &control.Error{
		Message: fmt.Sprintf("%v, but process %d has the cache %s", err, pid, cfg.Root),
		Hint:    "it starts, or it was told to stop and denies what is missing until nobody uses what it served: its log says which", Exit: control.ExitError,
	}
}

// awaitCache waits while a process has the cache that does not listen: it ends soon,
// or else it is told of by the attempt to take the cache.
func (a *app) awaitCache(cfg config.Config) error {
	ctx, stop := interruptible()
	defer stop()
	for began := time.Now(); time.Since(began) < holderWait; {
		if pid, err := cache.Holder(cfg.Root); err != nil || pid == 0 {
			return nil //nolint:nilerr // taking the cache says what is wrong with it
		}
		client, err := control.Dial(ctx, cfg.Socket)
		if err == nil {
			client.Close()
			return nil
		}
		if err := pauseFor(ctx, dialPause); err != nil {
			return err
		}
	}
	return nil
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
