package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// Headers knows what lies in a decoded layer right before the data of each file that
// has a place in the device, in their order. Its methods may be called concurrently.
type Headers interface {
	// Len is how many files there are.
	Len() int
	// Before is how many bytes before the data of a file its header begins.
	Before(file int) int64
	// Check tells whether header, those bytes, is the file's; any error means that
	// the data are not the file's.
	Check(file int, header []byte) error
}

// headers remembers which files' headers were found where they have to be. A layer's
// bytes never change, so what was found holds.
type headers struct {
	Headers
	lied atomic.Bool // one was not

	mu      sync.Mutex
	good    []uint64 // a bit for each file
	bad     map[int]error
	reading map[int]*reading
}

// reading is a header that is being read alone.
type reading struct {
	done chan struct{}
	err  error // then
}

// maxBad bounds the errors that are remembered. Headers of other files are read again.
const maxBad = 1024

func newHeaders(h Headers) *headers {
	return &headers{Headers: h, good: make([]uint64, (h.Len()+63)/64), bad: make(map[int]error), reading: make(map[int]*reading)}
}

// state tells whether the file's header is known to be right, or why it is wrong.
func (h *headers) state(file int) (known bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stateLocked(file)
}

func (h *headers) stateLocked(file int) (known bool, err error) {
	return h.good[file/64]&(1<<(file%64)) != 0, h.bad[file]
}

// read reads the file's header, which comes next in r.
func (h *headers) read(file int, r io.Reader) error {
	header := make([]byte, h.Before(file))
	if _, err := io.ReadFull(r, header); err != nil {
		return err
	}
	err := h.Check(file, header)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.good[file/64] |= 1 << (file % 64)
		return nil
	}
	h.lied.Store(true)
	if len(h.bad) < maxBad {
		h.bad[file] = err
	}
	return err
}

// readHeader reads the header of a file by itself, once for all who need it.
func (d *Decoded) readHeader(ctx context.Context, file int) error {
	h := d.headers
	for {
		h.mu.Lock()
		known, err := h.stateLocked(file)
		other := h.reading[file]
		mine := &reading{done: make(chan struct{})}
		if !known && err == nil && other == nil {
			h.reading[file] = mine
		}
		h.mu.Unlock()
		if known || err != nil {
			return err
		}
		if other == nil {
			mine.err = d.requestHeader(ctx, file)
			h.mu.Lock()
			delete(h.reading, file)
			h.mu.Unlock()
			close(mine.done)
			return mine.err
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		// Who has given up has not failed.
		if other.err != nil && !errors.Is(other.err, context.Canceled) && !errors.Is(other.err, context.DeadlineExceeded) {
			return other.err
		}
	}
}

func (d *Decoded) requestHeader(ctx context.Context, file int) (err error) {
	at, n := d.places[d.firstOf(file)].at, d.headers.Before(file)
	body, err := d.layer.ReadRange(ctx, at-n, n)
	if err != nil {
		return fmt.Errorf("read the header of a file at %d: %w", at-n, err)
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := d.headers.read(file, body); err != nil {
		return fmt.Errorf("read the header of a file at %d: %w", at-n, early(err))
	}
	return nil
}

// firstOf is the first place of a file, or of what is behind it.
func (d *Decoded) firstOf(file int) int {
	i, _ := slices.BinarySearchFunc(d.places, file, func(p place, file int) int {
		if p.file < file {
			return -1
		}
		return 1
	})
	return i
}

// Part implements source.Parted. A layer comes together, as spans and headers lie in
// it; once it was found that a file is not where it is said to be, each file comes
// by itself, so that no other fails with it.
func (d *Decoded) Part(off int64) (from, n int64) {
	if !d.headers.lied.Load() {
		return 0, d.size
	}
	i := d.find(off)
	if i == len(d.places) || d.places[i].off > off {
		i-- // the block that a file ends in
	}
	if i < 0 {
		return 0, d.size
	}
	file, end := d.places[i].file, d.size
	if next := d.firstOf(file + 1); next < len(d.places) {
		end = d.places[next].off
	}
	from = d.places[d.firstOf(file)].off
	return from, end - from
}
