package daemon

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/lacunafs/lacuna/internal/keeper"
)

// keeperLimit is how long a new keeper may take to answer.
const keeperLimit = 10 * time.Second

// newKeeper starts a keeper in place of one that was killed, and tells whether it
// runs. Until it does this process alone holds everything.
func (w *worker) newKeeper(ctx context.Context) bool {
	path, err := os.Executable()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, keeperLimit)
		defer cancel()
		err = w.client.StartKeeper(ctx, keeper.Start{Path: path, Args: KeeperArgs(), Env: w.env, Address: notifyAddress()})
	}
	if err != nil {
		w.report("starting a new keeper", err)
		<-time.After(time.Second)
		return false
	}
	w.log.Warn("the keeper had died, a new one runs", "keeper", w.client.KeeperPID())
	return true
}

// leaveKept comes before this process ends with something standing that its keeper
// has to go on with. Where that was killed, the end of this process would be the
// last close of the group, which lets readers through to the holes: it starts
// another keeper first, which restarts the worker or, where this is the end for
// good, denies reads until all is undone.
func (w *worker) leaveKept() error {
	if w.s.Systemd || !w.client.Holds() {
		return nil
	}
	if err := w.client.Watch(); err != nil {
		return err
	}
	// One that answers has not been killed; the kernel announces the end of one
	// that has some time after.
	ctx, cancel := context.WithTimeout(context.Background(), keeperLimit/2)
	defer cancel()
	if err := w.client.Barrier(ctx); !errors.Is(err, keeper.ErrKeeperLost) {
		return err
	}
	if w.leaves || w.s.Foreground { // a foreground command is over with its keeper
		if err := w.client.Stopping(); err != nil {
			return err
		}
	}
	for !w.newKeeper(context.Background()) {
	}
	return nil
}
