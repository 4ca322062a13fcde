package daemon

import (
	"io"
	"sync"
	"time"
)

// maxQueued is how many bytes of log wait to be written before more are dropped.
const maxQueued = 256 << 10

// LogQueue is between a log and where it is written, so that nobody who logs waits:
// a pipe that nobody reads must not hold up the answer to a reader. What there is
// no room for is dropped, and counted in what is next written.
type LogQueue struct {
	out     io.Writer
	dropped func(out io.Writer, lines int)

	mu     sync.Mutex
	work   *sync.Cond // lines or closed changed
	lines  [][]byte
	size   int // of lines, in bytes
	lost   int // lines dropped since the last that was taken
	closed bool
	done   chan struct{} // closed when the writing has ended
}

// NewLogQueue makes a queue in front of out. dropped tells out that so many lines
// are missing.
func NewLogQueue(out io.Writer, dropped func(out io.Writer, lines int)) *LogQueue {
	q := &LogQueue{out: out, dropped: dropped, done: make(chan struct{})}
	q.work = sync.NewCond(&q.mu)
	go q.write()
	return q
}

// Write takes one line, or drops it, and never waits or fails.
func (q *LogQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.size+len(line) > maxQueued {
		q.lost++
		return len(line), nil
	}
	q.lines = append(q.lines, append([]byte(nil), line...))
	q.size += len(line)
	q.work.Signal()
	return len(line), nil
}

// write writes the lines until the queue is closed and empty.
func (q *LogQueue) write() {
	defer close(q.done)
	for {
		q.mu.Lock()
		for len(q.lines) == 0 && !q.closed {
			q.work.Wait()
		}
		if len(q.lines) == 0 {
			q.mu.Unlock()
			return
		}
		line, lost := q.lines[0], q.lost
		q.lines, q.lost = q.lines[1:], 0
		q.mu.Unlock()
		if lost > 0 {
			q.dropped(q.out, lost)
		}
		_, err := q.out.Write(line)
		q.mu.Lock()
		q.size -= len(line)
		if err != nil {
			q.lost++
		}
		q.mu.Unlock()
	}
}

// Close takes no more lines and waits until those that were taken are written, for
// limit at most.
func (q *LogQueue) Close(limit time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.work.Signal()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(limit):
	}
}
