package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// RealtimeThread gives the calling thread the lowest real-time priority
// (sched_setattr(2), SCHED_FIFO): no ordinary thread preempts it. Threads that it
// starts do not inherit that. It must be locked to its goroutine, and end with
// it. It needs CAP_SYS_NICE.
func RealtimeThread() error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: 1}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("make a thread real-time: %w", err)
	}
	return nil
}
