package ondemand

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// pageBlocks is how many blocks one page of a Presence covers: 128 MiB of data.
const (
	pageBlocks = 1 << 15
	pageWords  = pageBlocks / 64
)

type presencePage [pageWords]atomic.Uint64

// Presence says which blocks of one object are present. Pages of the map exist
// only where a block is present, so a map of a sparse object of many TiB is small.
//
// Reads take no lock: a reading loop may ask for every event. A block that is
// seen present was set after its data was written, because Set is called after
// the write and both sides use atomic operations.
type Presence struct {
	size int64
	// count is the number of blocks present. While a Set or a Clear runs it is
	// too low, never too high: who sees Complete stops asking.
	count atomic.Int64
	pages []atomic.Pointer[presencePage]
	grow  sync.Mutex // held to add a page
}

// NewPresence returns a map for an object of size bytes with no block present.
func NewPresence(size int64) *Presence {
	n := (BlockCount(size) + pageBlocks - 1) / pageBlocks
	return &Presence{size: size, pages: make([]atomic.Pointer[presencePage], n)}
}

// Size is the object's size in bytes.
func (p *Presence) Size() int64 { return p.size }

// Complete tells whether every block is present.
func (p *Presence) Complete() bool { return p.count.Load() == BlockCount(p.size) }

// Bytes is the number of bytes present.
func (p *Presence) Bytes() int64 {
	n := p.count.Load() * BlockSize
	if rest := p.size % BlockSize; rest != 0 && p.has(BlockCount(p.size)-1) {
		n -= BlockSize - rest
	}
	return max(n, 0)
}

func (p *Presence) has(block int64) bool {
	page := p.pages[block/pageBlocks].Load()
	if page == nil {
		return false
	}
	return page[block%pageBlocks/64].Load()&(1<<(block%64)) != 0
}

// blockSpan returns the blocks [first, last) that hold any byte of r.
func (p *Presence) blockSpan(r Range) (first, last int64) {
	r = r.Intersect(Range{Len: p.size})
	if r.Empty() {
		return 0, 0
	}
	return r.Off / BlockSize, BlockCount(r.End())
}

// wholeSpan returns the blocks [first, last) that lie wholly in r; the last,
// partial block of the object counts as whole when r reaches the end.
func (p *Presence) wholeSpan(r Range) (first, last int64) {
	r = r.Intersect(Range{Len: p.size})
	first, last = BlockCount(r.Off), r.End()/BlockSize
	if r.End() == p.size {
		last = BlockCount(p.size)
	}
	return first, max(first, last)
}

// mask returns the bits of the word that holds block, up to block last, and
// the first block behind them.
func mask(block, last int64) (m uint64, next int64) {
	next = min(block&^63+64, last)
	m = ^uint64(0) << (block % 64)
	if rest := next % 64; rest != 0 {
		m &= 1<<rest - 1
	}
	return m, next
}

// Has tells whether every byte of r is present. Bytes behind the end of the
// object do not count; an empty range is present.
func (p *Presence) Has(r Range) bool {
	for b, last := p.blockSpan(r); b < last; {
		m, next := mask(b, last)
		page := p.pages[b/pageBlocks].Load()
		if page == nil || page[b%pageBlocks/64].Load()&m != m {
			return false
		}
		b = next
	}
	return true
}

// Set records that every block that lies wholly in r is present.
func (p *Presence) Set(r Range) {
	for b, last := p.wholeSpan(r); b < last; {
		m, next := mask(b, last)
		old := p.page(b / pageBlocks)[b%pageBlocks/64].Or(m)
		p.count.Add(int64(bits.OnesCount64(m &^ old)))
		b = next
	}
}

// Clear records that every block with a byte in r is missing.
func (p *Presence) Clear(r Range) {
	for b, last := p.blockSpan(r); b < last; {
		m, next := mask(b, last)
		if page := p.pages[b/pageBlocks].Load(); page != nil {
			p.count.Add(-int64(bits.OnesCount64(m)))
			old := page[b%pageBlocks/64].And(^m)
			p.count.Add(int64(bits.OnesCount64(m &^ old)))
		}
		b = next
	}
}

func (p *Presence) page(i int64) *presencePage {
	if page := p.pages[i].Load(); page != nil {
		return page
	}
	p.grow.Lock()
	defer p.grow.Unlock()
	if page := p.pages[i].Load(); page != nil {
		return page
	}
	page := new(presencePage)
	p.pages[i].Store(page)
	return page
}

// Missing returns the parts of r, widened to blocks and cut at the object's
// end, that are not present: in order, not touching, and nil where all is present.
func (p *Presence) Missing(r Range) []Range { return p.runs(r, false) }

// Present returns the parts of r, widened likewise, that are present.
func (p *Presence) Present(r Range) []Range { return p.runs(r, true) }

func (p *Presence) runs(r Range, present bool) []Range {
	var out []Range
	first, last := p.blockSpan(r)
	for b := first; b < last; {
		start := p.next(b, last, present)
		if start >= last {
			break
		}
		end := p.next(start, last, !present)
		off := start * BlockSize
		out = append(out, Range{Off: off, Len: min(end*BlockSize, p.size) - off})
		b = end
	}
	return out
}

// next is the first block in [b, last) whose presence is want, or last.
func (p *Presence) next(b, last int64, want bool) int64 {
	for b < last {
		page := p.pages[b/pageBlocks].Load()
		if page == nil {
			if !want {
				return b
			}
			b = min((b/pageBlocks+1)*pageBlocks, last)
			continue
		}
		m, next := mask(b, last)
		w := page[b%pageBlocks/64].Load()
		if !want {
			w = ^w
		}
		if w &= m; w != 0 {
			return b&^63 + int64(bits.TrailingZeros64(w))
		}
		b = next
	}
	return last
}
