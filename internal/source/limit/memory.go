package limit

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Memory bounds the bytes that readers hold decoded, however many there are at once.
type Memory struct{ bytes *semaphore.Weighted }

// NewMemory makes a memory of n bytes of which none is held.
func NewMemory(n int64) *Memory { return &Memory{semaphore.NewWeighted(n)} }

// Hold makes what one reader holds of it: nothing yet.
func (m *Memory) Hold(ctx context.Context) *Held {
	h := &Held{memory: m, ctx: ctx}
	h.wait, h.stop = context.WithCancel(ctx)
	return h
}

// Held is what one reader holds of a Memory. Take and Drop are for one goroutine;
// Close may be called at any time. So that readers never wait for each other in a
// circle, a reader takes memory before it takes a place of a Group: in Take it holds no
// request, and while it holds one it uses TryTake.
type Held struct {
	memory *Memory
	ctx    context.Context
	wait   context.Context // ends with ctx and with Close
	stop   context.CancelFunc

	mu     sync.Mutex
	closed bool
	n      int64 // bytes
}

// Take drops what is held and waits until n bytes may be. Its error wraps that of the
// context, or os.ErrClosed.
func (h *Held) Take(n int64) error {
	h.Drop()
	if err := h.memory.bytes.Acquire(h.wait, n); err != nil {
		if h.ctx.Err() == nil {
			err = os.ErrClosed
		}
		return fmt.Errorf("wait for memory: %w", err)
	}
	if !h.keep(n) {
		return fmt.Errorf("wait for memory: %w", os.ErrClosed)
	}
	return nil
}

// TryTake is Take where n bytes are free at once and nobody waits; otherwise it holds
// nothing.
func (h *Held) TryTake(n int64) bool {
	h.Drop()
	return h.memory.bytes.TryAcquire(n) && h.keep(n)
}

// keep holds n bytes, or gives them back where it is too late.
func (h *Held) keep(n int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		h.memory.bytes.Release(n)
		return false
	}
	h.n = n
	return true
}

// Drop gives back what is held.
func (h *Held) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked()
}

func (h *Held) dropLocked() {
	h.memory.bytes.Release(h.n)
	h.n = 0
}

// Close gives back what is held, for good: a Take that waits ends.
func (h *Held) Close() {
	h.stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.dropLocked()
}
