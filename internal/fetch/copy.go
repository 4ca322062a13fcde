package fetch

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// buffers keeps buffers of the two sizes for the next stream.
type buffers struct {
	small, large sync.Pool
}

func (b *buffers) get(size int64) []byte {
	pool := b.pool(size)
	if p, ok := pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, size)
}

func (b *buffers) put(p []byte) { b.pool(int64(len(p))).Put(&p) }

func (b *buffers) pool(size int64) *sync.Pool {
	if size == smallPiece {
		return &b.small
	}
	return &b.large
}

// copy reads body to the end of s and writes whole blocks as they come.
func (s *stream) copy(body io.Reader) error {
	pool := &s.object.fetcher.buffers
	buf := pool.get(bufferSize(s.end - s.pos))
	defer pool.put(buf)
	have, empty := 0, 0
	for {
		free := min(int64(len(buf)-have), s.end-s.pos-int64(have))
		n, err := body.Read(buf[have : have+int(free)])
		if n < 0 || int64(n) > free {
			return fmt.Errorf("%w: a read of %d bytes returned %d", source.ErrNotBytes, free, n)
		}
		s.object.count.fetched.Add(int64(n))
		have += n
		if n > 0 {
			if yerr := s.goOn(n); yerr != nil {
				return yerr
			}
		}
		last := s.pos+int64(have) == s.end
		if last || err != nil || s.due(have, len(buf)) {
			whole := have
			if !last {
				whole &^= ondemand.BlockSize - 1
			}
			stop, werr := s.write(buf[:whole])
			if werr != nil || stop {
				return werr
			}
			have = copy(buf, buf[whole:have])
		}
		switch {
		case last:
			return s.readEnd(body, err)
		case errors.Is(err, io.EOF):
			return fmt.Errorf("read at %d: %w", s.pos+int64(have), io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("read at %d: %w", s.pos+int64(have), err)
		case n > 0:
			empty = 0
		default:
			if empty++; empty == 100 {
				return fmt.Errorf("read at %d: %w", s.pos+int64(have), io.ErrNoProgress)
			}
		}
	}
}

// readEnd sees that a body of which all bytes came ends there, which also lets
// its connection be used again. err is what came with the last bytes.
func (s *stream) readEnd(body io.Reader, err error) error {
	for range 2 {
		if err != nil {
			break
		}
		var n int
		var more [1]byte
		if n, err = body.Read(more[:]); n > 0 {
			return fmt.Errorf("%w: more bytes than asked for", source.ErrNotBytes)
		}
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("read end of body: %w", err)
}

// due tells whether have bytes in a buffer of size are to be written now: when
// it is full or half of it would be late on a slow link, and when they are all
// that a Fill waits for.
func (s *stream) due(have, size int) bool {
	if have == size || have >= smallPiece {
		return true
	}
	if have < ondemand.BlockSize {
		return false
	}
	got := ondemand.Range{Off: s.pos, Len: int64(have) &^ (ondemand.BlockSize - 1)}
	s.object.mu.Lock()
	defer s.object.mu.Unlock()
	for _, w := range s.waiters {
		want := w.r.Blocks(s.object.Size()).Intersect(s.rest())
		if !want.Empty() && got.Contains(want) {
			return true
		}
	}
	return false
}

// write writes the blocks of p, which follow at s.pos, that are missing, and
// moves s on. It tells s to stop when nothing behind is missing any more.
func (s *stream) write(p []byte) (stop bool, err error) {
	if len(p) == 0 {
		return false, nil
	}
	o := s.object
	got := ondemand.Range{Off: s.pos, Len: int64(len(p))}
	for off := got.Off; off < got.End(); {
		r := o.missingRun(ondemand.Range{Off: off, Len: got.End() - off})
		if r.Empty() {
			break
		}
		written := o.writes.begin(r.Blocks(o.Size()))
		err := o.cache.Fill(p[r.Off-got.Off:r.End()-got.Off], r.Off)
		written()
		if err != nil {
			return false, err
		}
		o.count.filled(s, r)
		off = r.End()
	}
	s.advance(got.End())
	o.fetcher.options.Present(o.ID(), got)
	if o.cache.Complete() {
		o.verifyIfDue()
	}
	return s.end-s.pos > drain && o.cache.Has(s.rest()), nil
}

// advance moves s to off and wakes who has all that it waits for.
func (s *stream) advance(off int64) {
	s.object.mu.Lock()
	defer s.object.mu.Unlock()
	s.pos = off
	s.wakePresentLocked()
}

// missingRun is the first run of missing blocks in r, which begins at a block.
// It asks block by block, because Missing makes garbage.
func (o *Object) missingRun(r ondemand.Range) ondemand.Range {
	block := func(off int64) ondemand.Range {
		return ondemand.Range{Off: off, Len: min(ondemand.BlockSize, r.End()-off)}
	}
	off := r.Off
	for off < r.End() && o.cache.Has(block(off)) {
		off += ondemand.BlockSize
	}
	end := off
	for end < r.End() && !o.cache.Has(block(end)) {
		end += ondemand.BlockSize
	}
	end = min(end, r.End())
	return ondemand.Range{Off: off, Len: max(end-off, 0)}
}
