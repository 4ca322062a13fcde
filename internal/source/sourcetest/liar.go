package sourcetest

import (
	"context"
	"io"
	"sync"

	"github.com/lacunafs/lacuna/internal/source"
)

// Liar is a blob that can be told to give wrong bytes, in answers that are otherwise as
// they should be. Its bodies say its name when they are refuted.
type Liar struct {
	source.Blob
	Name string

	mu             sync.Mutex
	from, to       int64 // the lies
	asked, refuted int
}

// Lie makes the bytes of [from, to) wrong.
func (l *Liar) Lie(from, to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, l.to = from, to
}

// Asked is how many requests there were, and how many of them were refuted.
func (l *Liar) Asked() (requests, refuted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked, l.refuted
}

// ReadRange implements source.Blob.
func (l *Liar) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := l.Blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	return &lyingBody{ReadCloser: body, ctx: ctx, l: l, off: off}, nil
}

type lyingBody struct {
	io.ReadCloser
	ctx context.Context
	l   *Liar
	off int64
}

func (b *lyingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	for at := max(b.l.from, b.off); at < min(b.l.to, b.off+int64(n)); at++ {
		p[at-b.off] ^= 0x20
	}
	b.off += int64(n)
	return n, err
}

// Refute implements source.Refutable.
func (b *lyingBody) Refute() bool {
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	b.l.refuted++
	source.RefutedIn(b.ctx).Add(b.l, b.l.Name)
	return false
}
