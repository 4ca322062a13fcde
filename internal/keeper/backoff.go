package keeper

import "time"

const (
	quickStarts = 3
	firstWait   = 100 * time.Millisecond
	longestWait = 5 * time.Second
	// readyWait is the longest wait where one of the last patientStarts+1 workers
	// had become ready. It is shorter than unattendedFrom: readers sleep on
	// rather than get errors, as their own deadlines, which run on from worker
	// to worker, allow.
	readyWait     = 500 * time.Millisecond
	patientStarts = 5
	// goodLife is how long a worker has to live for its end not to be counted
	// with those before.
	goodLife = 2 * time.Second
	// unattendedFrom is the shortest wait in which requests are denied rather
	// than left for the next worker.
	unattendedFrom = time.Second
)

// backoff says how long to wait before a worker is started again.
type backoff struct {
	ends    int
	unready int // of the last ones, in a row, that had not become ready
}

// next is the wait after the end of a worker that has lived for so long, and
// had become ready or not; 0 and false for one that could not be started.
func (b *backoff) next(lived time.Duration, ready bool) time.Duration {
	if lived >= goodLife {
		b.ends = 0
	}
	b.ends++
	b.unready++
	if ready {
		b.unready = 0
	}
	if b.ends <= quickStarts {
		return 0
	}
	longest := longestWait
	if b.unready <= patientStarts {
		longest = readyWait
	}
	// 100 ms doubled six times is above the longest wait.
	return min(firstWait<<min(b.ends-quickStarts-1, 6), longest)
}

// clock is time as the supervisor sees it.
type clock struct {
	now func() time.Time
	// after sends once after d, unless stop is called.
	after func(d time.Duration) (fired <-chan time.Time, stop func())
}

func wallClock() clock {
	return clock{
		now: time.Now,
		after: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTimer(d)
			return t.C, func() { t.Stop() }
		},
	}
}
