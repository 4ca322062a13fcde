package fanotify

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// denyPollMillis is how often DenyAll looks whether it is to end.
const denyPollMillis = 50

// DenyAll answers every open event of the group with EIO, and each new one
// too, until ctx ends. It is what the keeper does while no worker runs:
// without it readers would sleep without limit. Nobody else may use the group.
func DenyAll(ctx context.Context, group *sys.FD, t *Inflight) error {
	// Whoever handed the group on may have made it blocking, for all holders.
	if err := sys.SetNonblock(group.Int(), true); err != nil {
		return err
	}
	if err := denyOpen(group, t, nil); err != nil {
		return err
	}
	for n := range t.Slots() {
		t.leave(n)
	}
	clear(t.buffer())
	return denyLoop(ctx, group, t)
}

// denyOpen denies every open event with a number that t has room for, but those
// in except.
func denyOpen(group *sys.FD, t *Inflight, except map[int]bool) error {
	for n := range t.Slots() {
		if except[n] {
			continue
		}
		if _, err := respondIfOpen(group, n, syscall.EIO); err != nil {
			return err
		}
	}
	return nil
}

func denyLoop(ctx context.Context, group *sys.FD, t *Inflight) error {
	buf := make([]byte, 64*sys.FanotifyEventSize)
	for ctx.Err() == nil {
		n, err := sys.Read(group, buf)
		if errors.Is(err, syscall.EAGAIN) {
			if _, err := sys.WaitReadable(group, denyPollMillis); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := denyBatch(group, t, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

func denyBatch(group *sys.FD, t *Inflight, rest []byte) error {
	for len(rest) > 0 {
		var ev sys.FanotifyEvent
		var malformed error
		// A malformed event is denied too, as far as it has a descriptor.
		ev, rest, malformed = sys.ParseFanotifyEvent(rest)
		if malformed != nil && rest == nil {
			// It is not known where the others begin.
			if err := denyOpen(group, t, nil); err != nil {
				return err
			}
		}
		if ev.FD < 0 {
			continue
		}
		_, err := respondIfOpen(group, ev.FD, syscall.EIO)
		if err := errors.Join(err, sys.NewFD(ev.FD).Close()); err != nil {
			return err
		}
	}
	return nil
}

// respondIfOpen answers the event with this number and tells whether there was one.
func respondIfOpen(group *sys.FD, number int, errno syscall.Errno) (bool, error) {
	err := sys.FanotifyRespond(group, number, errno)
	if errors.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("answer event %d: %w", number, err)
	}
	return true, nil
}
