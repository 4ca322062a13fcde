package prepare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/fetch/device"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Parts is what the cache root dir knows of the bytes of a layer's device, which
// has size bytes; an error that wraps fs.ErrNotExist where it knows nothing.
func Parts(dir string, id ondemand.ObjectID, size int64) ([]cache.Part, error) {
	l := &Library{dir: dir}
	t, _, err := l.loadTOC(id)
	if err != nil {
		return nil, err
	}
	if t.DeviceSize() != size {
		return nil, fmt.Errorf("the table of contents of %s is of %d bytes, not %d: %w", id.Short(), t.DeviceSize(), size, toc.ErrInvalid)
	}
	return device.Parts(t)
}

// Files is where the files of a plan's layer that are not empty lie in its device,
// in order.
func (l *Library) Files(layer Layer) ([]ondemand.Range, error) {
	t, _, err := l.loadTOC(layer.Device)
	if err != nil {
		return nil, err
	}
	var files []ondemand.Range
	places := t.Places()
	for n := range t.Entries {
		if e := &t.Entries[n]; e.HoldsPlace() && e.Type == toc.Regular {
			files = append(files, ondemand.Range{Off: places[n], Len: e.Size})
		}
	}
	return files, nil
}

// Device is the device of a plan's layer as a blob. blob opens the layer's own, and
// ztoc its zTOC if it is read by one; they and the table of contents are needed only
// when something is fetched.
func (l *Library) Device(layer Layer, blob, ztoc func() (source.Blob, error)) source.Blob {
	return &lazy{size: layer.Size, open: func() (source.Blob, *index, error) {
		t, _, err := l.loadTOC(layer.Device)
		if err != nil {
			return nil, nil, err
		}
		if t.DeviceSize() != layer.Size {
			return nil, nil, fmt.Errorf("device %s: %d bytes, not %d: %w", layer.Device.Short(), t.DeviceSize(), layer.Size, toc.ErrInvalid)
		}
		b, err := blob()
		if err != nil {
			return nil, nil, err
		}
		if layer.Ztoc != nil {
			return l.decoded(layer, t, b, ztoc)
		}
		d, err := device.New(b, t, l.gate)
		if err != nil {
			return nil, nil, errors.Join(err, b.Close())
		}
		return d, nil, nil
	}}
}

// Settle has the rest of an index read, verified and kept that a device of Device is
// read by. Readers have to wait for it.
func Settle(ctx context.Context, b source.Blob) error {
	z, ok := b.(*lazy)
	if !ok {
		return nil
	}
	if _, err := z.get(); err != nil {
		return err
	}
	z.mu.Lock()
	x := z.index
	z.mu.Unlock()
	if x == nil {
		return nil
	}
	return x.settle(ctx)
}

// Indexed is what became of the index that a device of Device is read by: settled, all of
// it is there and belongs to its digest; wrong, why nothing can be read by it.
func Indexed(b source.Blob) (settled bool, wrong error) {
	z, ok := b.(*lazy)
	if !ok {
		return false, nil
	}
	z.mu.Lock()
	x, failed := z.index, z.failed
	z.mu.Unlock()
	if x == nil {
		return false, failed
	}
	times, wrong := x.state()
	return times%2 == 1, wrong
}

// lazy is a device that is opened when it is first read.
type lazy struct {
	size int64
	open func() (source.Blob, *index, error)

	mu     sync.Mutex
	closed bool
	opened source.Blob
	index  *index // of opened; nil: it has none
	failed error  // why it could not be opened last
}

func (z *lazy) get() (source.Blob, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.closed {
		return nil, fmt.Errorf("read device: %w", os.ErrClosed)
	}
	if z.opened == nil {
		d, x, err := z.open()
		if z.failed = err; err != nil {
			return nil, err
		}
		z.opened, z.index = d, x
	}
	return z.opened, nil
}

// Ready implements source.Readied.
func (z *lazy) Ready(ctx context.Context, off, n int64) error {
	d, err := z.get()
	if err != nil {
		return err
	}
	return source.Ready(ctx, d, off, n)
}

// Size implements source.Blob.
func (z *lazy) Size() int64 { return z.size }

// ReadRange implements source.Blob.
func (z *lazy) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	d, err := z.get()
	if err != nil {
		return nil, err
	}
	return d.ReadRange(ctx, off, n)
}

// Align implements source.Aligned.
func (z *lazy) Align(off, n int64) (int64, int64) {
	d, err := z.get()
	if err != nil {
		return off, n // ReadRange says why
	}
	return source.Align(d, off, n)
}

// Part implements source.Parted.
func (z *lazy) Part(off int64) (from, n int64) {
	z.mu.Lock()
	opened := z.opened
	z.mu.Unlock()
	if opened == nil {
		return 0, z.size
	}
	return source.Part(opened, off)
}

// Close implements source.Blob.
func (z *lazy) Close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.closed = true
	if z.opened == nil {
		return nil
	}
	return z.opened.Close()
}
