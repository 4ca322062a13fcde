package sourcetest

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/lacunafs/lacuna/internal/source"
)

// Breaking is a Blob whose first requests break in their middle, all at once.
type Breaking struct {
	source.Blob
	left    atomic.Int64
	release chan struct{}
}

// Break makes the first n requests of b break when Release is called.
func Break(b source.Blob, n int64) *Breaking {
	f := &Breaking{Blob: b, release: make(chan struct{})}
	f.left.Store(n)
	return f
}

// Release breaks what was to break.
func (f *Breaking) Release() { close(f.release) }

// ReadRange implements source.Blob.
func (f *Breaking) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := f.Blob.ReadRange(ctx, off, n)
	if err == nil && f.left.Add(-1) >= 0 {
		r = &broken{r, f, n / 2}
	}
	return r, err
}

type broken struct {
	io.ReadCloser
	f *Breaking
	n int64
}

// Read gives half of what was asked for, and then fails with ErrInjected.
func (b *broken) Read(p []byte) (int, error) {
	if b.n == 0 {
		<-b.f.release
		return 0, ErrInjected
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.n)])
	b.n -= int64(n)
	return n, err
}
