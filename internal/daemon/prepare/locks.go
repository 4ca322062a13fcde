package prepare

import (
	"context"
	"sync"
)

// locks are one lock for each name. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]*held
}

// held is a lock that somebody has or waits for.
type held struct {
	token chan struct{} // capacity 1; full: somebody has it
	users int
}

// lock waits for the lock of that name; unlock gives it back.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*held)
	}
	h := l.held[name]
	if h == nil {
		h = &held{token: make(chan struct{}, 1)}
		l.held[name] = h
	}
	h.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case h.token <- struct{}{}:
		return func() { <-h.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
