package soci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/zran"
)

// Span is a piece of a layer that can be decoded by itself.
type Span struct {
	Index int
	// Checkpoint is where it begins, with the window that decoding starts with.
	// A span of toc.Stored has none.
	Checkpoint zran.Checkpoint
	// BlobOff and BlobLen are the range of the blob that Digest is of, and that
	// decoding needs. The first byte may be the last one of the span before.
	BlobOff, BlobLen int64
	Digest           [sha256.Size]byte
	// End is where the next span begins in the uncompressed layer; the last one
	// ends with the layer, and End is math.MaxInt64.
	End int64
}

// Reader reads the checkpoints of a zTOC when they are needed. What it has read of
// where spans begin it remembers, their windows it does not: the zTOC's blob is
// where these are to be kept. Any number of goroutines may use it.
type Reader struct {
	spans *Spans
	ztoc  toc.Blob

	mu    sync.Mutex
	heads map[int]zran.Checkpoint // without windows
	all   []zran.Checkpoint       // without windows; nil: not all of them are known
	used  map[int][sha256.Size]byte
}

// NewReader makes a Reader of the zTOC whose metadata said s.
func NewReader(s *Spans, ztoc toc.Blob) (*Reader, error) {
	if ztoc.Size() != s.ZtocSize {
		return nil, fmt.Errorf("read zTOC: it has %d bytes, and had %d: %w", ztoc.Size(), s.ZtocSize, toc.ErrInvalid)
	}
	return &Reader{spans: s, ztoc: ztoc, heads: make(map[int]zran.Checkpoint), used: make(map[int][sha256.Size]byte)}, nil
}

// Spans are what the reader was made of.
func (r *Reader) Spans() *Spans {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spans
}

// Covering are the spans that hold [off, end) of the uncompressed layer, in
// order; past the layer's end it is as if the last one went on. As a rule it is one
// request for some 32 KiB a span.
func (r *Reader) Covering(ctx context.Context, off, end int64) ([]Span, error) {
	s := r.Spans()
	if off < 0 || end <= off {
		return nil, fmt.Errorf("read zTOC: range [%d,%d): %w", off, end, toc.ErrInvalid)
	}
	i, points, err := r.find(ctx, s, off)
	if err != nil {
		return nil, fmt.Errorf("read zTOC: checkpoint of %d: %w", off, err)
	}
	var out []Span
	if points != nil {
		out = s.between(i, 1, points)
	}
	for next := i + len(out); next < s.Count(); next = i + len(out) {
		if len(out) > 0 {
			if off = out[len(out)-1].End; off >= end {
				break
			}
		}
		// As many at once as there may be: they are at least a span's size apart.
		n := 1 + min((end-off)/max(s.SpanSize, 1), maxAtOnce-1)
		more, err := r.Load(ctx, next, min(int(n), s.Count()-next))
		if err != nil {
			return nil, err
		}
		for _, span := range more {
			if out = append(out, span); span.End >= end {
				return out, nil
			}
		}
	}
	return out, nil
}

// maxAtOnce bounds the checkpoints of one request.
const maxAtOnce = 64

// Place is where the span of the byte at off of the uncompressed layer begins and
// ends, the layer's end counting as the last one's; it reads nothing, and is false
// where that is not known yet.
func (r *Reader) Place(off int64) (from, end int64, known bool) {
	s := r.Spans()
	if s.Codec == toc.Stored {
		from = min(off/s.SpanSize, int64(s.Count()-1)) * s.SpanSize
		return from, min(from+s.SpanSize, s.Uncompressed), true
	}
	lo, hi, from, end := r.around(s, off)
	return from, end, hi-lo == 1
}

// Load reads the checkpoints of n spans from i on with one request.
func (r *Reader) Load(ctx context.Context, i, n int) ([]Span, error) {
	s := r.Spans()
	if i < 0 || n <= 0 || i > s.Count()-n {
		return nil, fmt.Errorf("read zTOC: spans [%d,+%d) of %d: %w", i, n, s.Count(), toc.ErrInvalid)
	}
	points, err := r.points(ctx, s, i, n)
	if err != nil {
		return nil, fmt.Errorf("read zTOC: checkpoints [%d,+%d): %w", i, n, err)
	}
	return s.between(i, n, points), nil
}

// between makes n spans from i on of the points where they and the next one begin.
func (s *Spans) between(i, n int, points []zran.Checkpoint) []Span {
	out := make([]Span, n)
	for k := range out {
		c := points[k]
		end, blobEnd := int64(math.MaxInt64), s.BlobSize
		if k+1 < len(points) {
			end, blobEnd = points[k+1].Out, points[k+1].In
		}
		out[k] = Span{
			Index: i + k, Checkpoint: c, BlobOff: c.Start(), BlobLen: blobEnd - c.Start(), Digest: s.Digests[i+k], End: end,
		}
	}
	return out
}

// points reads the checkpoints of n spans from i on, and of the next one where it
// begins.
func (r *Reader) points(ctx context.Context, s *Spans, i, n int) ([]zran.Checkpoint, error) {
	all := min(n+1, s.Count()-i)
	points := make([]zran.Checkpoint, all)
	var data []byte
	begin := int64(-1)
	for k := range points { // where the records lie that there are
		if off, size := s.Record(i + k); size > 0 && begin < 0 {
			begin = off
		}
	}
	if begin >= 0 {
		off, size := s.Record(i + n - 1)
		end := off + size
		if all > n {
			off, _ = s.Record(i + n)
			end = off + headSize
		}
		var err error
		if data, err = read(ctx, r.ztoc, begin, end-begin); err != nil {
			return nil, err
		}
	}
	sums := make(map[int][sha256.Size]byte)
	for k := range points {
		off, size := s.Record(i + k)
		if size == 0 {
			points[k] = s.fixed(i + k)
			continue
		}
		record := data[off-begin:]
		if k < n {
			record = record[:size:size]
			sums[i+k] = sha256.Sum256(record)
			if s.sums != nil && s.sums[i+k] != sums[i+k] {
				return nil, fmt.Errorf("span %d: %w", i+k, toc.ErrDigest)
			}
		} else {
			record = record[:headSize]
		}
		points[k] = parseRecord(record)
	}
	return points, r.learn(s, i, points, sums)
}

// learn checks points, which are those of the spans from i on, against each other
// and what is known, and remembers where they are.
func (r *Reader) learn(s *Spans, i int, points []zran.Checkpoint, sums map[int][sha256.Size]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	below, above := r.aroundLocked(i, i+len(points)-1)
	for k, c := range points {
		if err := s.check(i+k, c); err != nil {
			return err
		}
		if k > 0 {
			if err := checkPair(i+k-1, points[k-1], i+k, c); err != nil {
				return err
			}
		}
		if r.all != nil && bit(r.all[i+k]) != bit(c) || r.all != nil && r.all[i+k].Out != c.Out {
			return fmt.Errorf("span %d begins elsewhere than when it was verified: %w", i+k, toc.ErrDigest)
		}
		if h, ok := r.heads[i+k]; ok && (h.In != c.In || h.Out != c.Out || h.Bits != c.Bits) {
			return invalid("span %d begins elsewhere than before", i+k)
		}
		before, known := r.used[i+k]
		if sum, now := sums[i+k]; known && now && sum != before {
			return invalid("span %d has another window than before", i+k)
		}
	}
	if below >= 0 {
		if err := checkPair(below, r.heads[below], i, points[0]); err != nil {
			return err
		}
	}
	if last := len(points) - 1; above >= 0 {
		if err := checkPair(i+last, points[last], above, r.heads[above]); err != nil {
			return err
		}
	}
	for k, c := range points {
		c.Window = nil
		r.heads[i+k] = c
	}
	maps.Copy(r.used, sums)
	return nil
}

// aroundLocked are the nearest known spans below first and above last; -1: none.
func (r *Reader) aroundLocked(first, last int) (below, above int) {
	below, above = -1, -1
	for i := range r.heads {
		if i < first && i > below {
			below = i
		}
		if i > last && (above < 0 || i < above) {
			above = i
		}
	}
	return below, above
}

// find is the span that holds the byte at out, with its checkpoint and the next
// one's place where they were read for it. Spans are about equally long, so it
// guesses; after a few wrong guesses it halves.
func (r *Reader) find(ctx context.Context, s *Spans, out int64) (int, []zran.Checkpoint, error) {
	if s.Codec == toc.Stored {
		return int(min(out/s.SpanSize, int64(s.Count()-1))), nil, nil
	}
	const guesses = 4
	at, points := -1, []zran.Checkpoint(nil)
	for try := 0; ; try++ {
		lo, hi, from, to := r.around(s, out)
		if hi-lo <= 1 {
			if lo != at {
				points = nil
			}
			return lo, points, nil
		}
		at = lo + (hi-lo)/2
		if try < guesses && to > from {
			each := max(1, (to-from)/int64(hi-lo))
			at = lo + int(min((out-from)/each, int64(hi-lo-1)))
		}
		var err error
		if points, err = r.points(ctx, s, at, 1); err != nil {
			return 0, nil, err
		}
	}
}

// around are the nearest known spans that begin at or before, and after out, and
// where they begin. The layer's end counts as known.
func (r *Reader) around(s *Spans, out int64) (lo, hi int, from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hi, to = s.Count(), s.Uncompressed
	if r.all != nil {
		hi, _ = slices.BinarySearchFunc(r.all, out, func(c zran.Checkpoint, out int64) int {
			if c.Out <= out {
				return -1
			}
			return 1
		})
		if hi < len(r.all) {
			to = r.all[hi].Out
		}
		lo = max(hi-1, 0)
		return lo, hi, r.all[lo].Out, to
	}
	for i, c := range r.heads {
		if c.Out <= out && i >= lo {
			lo, from = i, c.Out
		}
		if c.Out > out && i < hi {
			hi, to = i, c.Out
		}
	}
	return lo, hi, from, to
}

// ErrOther: what was read of a zTOC before is not in it.
var ErrOther = errors.New("what was read of it before was another's")

// Verify reads all of the zTOC and compares it with digest, "sha256:" and 64
// hexadecimal digits; any other is toc.ErrDigest. All checkpoints are checked on the
// way, those of which something was used before must be what they were, and so must the
// metadata. Of a zTOC that has its digest it is ErrOther, as well, where they are not,
// and toc.ErrInvalid only of such a one. From then on Spans are Verified, and to be
// encoded anew.
func (r *Reader) Verify(ctx context.Context, digest string) error {
	sums, heads, err := r.verify(ctx, digest)
	if err != nil {
		return fmt.Errorf("verify zTOC: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, sum := range r.used {
		if sum != sums[i] {
			return fmt.Errorf("verify zTOC: checkpoint of span %d was another: %w: %w", i, ErrOther, toc.ErrDigest)
		}
	}
	verified := *r.spans
	verified.sums = sums
	r.spans, r.all = &verified, heads
	return nil
}

func (r *Reader) verify(ctx context.Context, digest string) (_ [][sha256.Size]byte, _ []zran.Checkpoint, err error) {
	s := r.Spans()
	body, err := r.ztoc.ReadRange(ctx, 0, s.ZtocSize)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	whole, kept := sha256.New(), sha256.New()
	sums, heads := make([][sha256.Size]byte, s.Count()), make([]zran.Checkpoint, s.Count())
	next, last := 0, zran.Checkpoint{}
	var wrong error // told only of a zTOC that has its digest
	buf := make([]byte, recordSize)
	for pos := int64(0); pos < s.ZtocSize; {
		off, size := int64(-1), int64(0)
		for next < s.Count() {
			if off, size = s.Record(next); size > 0 {
				break
			}
			heads[next] = s.fixed(next)
			next, last, off = next+1, heads[next], -1
		}
		n := min(int64(len(buf)), s.ZtocSize-pos)
		if off > pos {
			n = min(n, off-pos)
		}
		if _, err := io.ReadFull(body, buf[:n]); err != nil {
			return nil, nil, err
		}
		whole.Write(buf[:n])
		for _, k := range s.kept {
			if from, to := max(k[0], pos), min(k[1], pos+n); from < to {
				kept.Write(buf[from-pos : to-pos])
			}
		}
		if off == pos {
			sums[next] = sha256.Sum256(buf[:n])
			c := parseRecord(buf[:n])
			c.Window = nil
			if err := s.check(next, c); wrong == nil {
				wrong = err
			}
			if next > 0 {
				if err := checkPair(next-1, last, next, c); wrong == nil {
					wrong = err
				}
			}
			heads[next] = c
			next, last = next+1, c
		}
		pos += n
	}
	switch got := "sha256:" + hex.EncodeToString(whole.Sum(nil)); {
	case got != digest:
		return nil, nil, fmt.Errorf("it is %s, the index says %.100q: %w", got, digest, toc.ErrDigest)
	case [sha256.Size]byte(kept.Sum(nil)) != s.keptSum:
		return nil, nil, fmt.Errorf("its metadata were others: %w: %w", ErrOther, toc.ErrDigest)
	}
	return sums, heads, wrong
}
