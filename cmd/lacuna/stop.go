package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
)

// stopCmd ends the running instance.
type stopCmd struct {
	Wait bool `help:"Return once it has ended, however long what it serves is in use."`
}

// Help is the long help.
func (stopCmd) Help() string {
	return `Ends the instance that listens on the control socket, as SIGTERM does: what
nobody uses is taken away, and what was fetched stays in the cache. What is in
use is served until it is free, and only then the instance ends; the message
names who uses it, and so does "lacuna status" from then on. Nothing can be
mounted or attached meanwhile; umount, detach and hydrate work.

Without --wait the command returns as soon as it is known whether it must wait.

  # lacuna stop
  lacuna: stop: it ends once nobody uses /mnt/app: process 4711 (bash)
  hint: ` + "`lacuna status` tells who is left, `lacuna stop --wait` waits" + `

EXIT STATUS
  0  it has ended
  1  no instance runs, or another error
  2  wrong usage
  6  somebody uses what it serves; it ends when they are done`
}

const (
	// endPoll and endPause are how often it is looked whether the instance has ended,
	// at first and later.
	endPoll  = 50 * time.Millisecond
	endPause = time.Second
	// endWait is how long an instance that waits for nobody may take to end.
	endWait = 30 * time.Second
)

// Run is the verb.
func (c *stopCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	return a.ask(func(ctx context.Context, client *control.Client) error {
		s, err := client.Status(ctx)
		if err != nil {
			return err
		}
		reply, err := client.Stop(ctx)
		if err != nil {
			return err
		}
		if len(reply.Waits) > 0 && !c.Wait {
			return &control.Error{
				Message: "stop: it ends once nobody uses " + strings.Join(reply.Waits, "; "),
				Hint:    "`lacuna status` tells who is left, `lacuna stop --wait` waits", Exit: control.ExitInUse,
			}
		}
		if len(reply.Waits) > 0 {
			a.notes([]string{"it ends once nobody uses " + strings.Join(reply.Waits, "; ")})
		}
		cfg.Root = s.Root
		return awaitEnd(ctx, cfg, s, c.Wait)
	})
}

// awaitEnd returns once the instance that was in the state s has ended.
func awaitEnd(ctx context.Context, cfg config.Config, s control.Status, forever bool) error {
	pause := endPoll
	for began := time.Now(); ; pause = min(2*pause, endPause) {
		client, err := control.Dial(ctx, cfg.Socket)
		if errors.Is(err, control.ErrNotRunning) {
			// Who may not look at the cache knows no more.
			if pid, err := cache.Holder(cfg.Root); err != nil || pid == 0 {
				return nil //nolint:nilerr // the socket is gone
			}
		} else if err != nil {
			return err
		} else if err := isStopping(ctx, client, s); err != nil {
			return err
		}
		if !forever && time.Since(began) > endWait {
			return &control.Error{
				Message: fmt.Sprintf("stop: nobody uses what it serves, but it has not ended after %v", endWait),
				Hint:    "its log says what it is at", Exit: control.ExitError,
			}
		}
		if err := pauseFor(ctx, pause); err != nil {
			return &control.Error{Message: "stop: interrupted", Hint: "the instance ends all the same, once nobody uses what it serves", Exit: control.ExitError}
		}
	}
}

// isStopping is an error where another worker serves that does not stop.
func isStopping(ctx context.Context, client *control.Client, before control.Status) error {
	defer client.Close()
	now, err := client.Status(ctx)
	if err != nil || now.Stopping || now.WorkerPID == before.WorkerPID && now.Started.Equal(before.Started) {
		return nil //nolint:nilerr // it may just be ending
	}
	return &control.Error{
		Message: fmt.Sprintf("stop: it has ended, and worker %d was started in its place", now.WorkerPID),
		Hint:    "where systemd runs it: `systemctl stop`, or install packaging/lacuna.service anew", Exit: control.ExitError,
	}
}
