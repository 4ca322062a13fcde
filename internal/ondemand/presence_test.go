package ondemand

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// presenceModel is a Presence beside the plainest thing that does the same.
type presenceModel struct {
	*Presence
	blocks map[int64]bool
}

// draw makes a range that often lies across the borders of words and pages.
func (m *presenceModel) draw(t *rapid.T) Range {
	size := m.Size()
	near := rapid.SampledFrom([]int64{0, 64 * BlockSize, pageBlocks * BlockSize, 2 * pageBlocks * BlockSize, size / 2, size}).Draw(t, "near")
	off := near + rapid.Int64Range(-70*BlockSize, 70*BlockSize).Draw(t, "delta")
	n := rapid.SampledFrom([]int64{0, 1, 100, BlockSize - 1, BlockSize, 3*BlockSize + 5, 200 * BlockSize}).Draw(t, "len")
	return Range{Off: max(off, 0), Len: n}
}

func (m *presenceModel) bytes() (n int64) {
	for b := range m.blocks {
		n += min(BlockSize, m.Size()-b*BlockSize)
	}
	return n
}

// each calls f for the blocks of r that hold a byte of the object.
func (m *presenceModel) each(r Range, f func(block int64)) {
	if r.Off >= m.Size() {
		return // its block may have begun before the end
	}
	for b := r.Off / BlockSize; b*BlockSize < min(r.End(), m.Size()); b++ {
		f(b)
	}
}

func (m *presenceModel) has(r Range) bool {
	all := true
	if r.Len > 0 {
		m.each(r, func(b int64) { all = all && m.blocks[b] })
	}
	return all
}

// runs is what Present or Missing must return.
func (m *presenceModel) runs(r Range, want bool) (out []Range) {
	if r.Len == 0 {
		return nil
	}
	m.each(r, func(b int64) {
		if m.blocks[b] != want {
			return
		}
		one := Range{Off: b * BlockSize, Len: min(BlockSize, m.Size()-b*BlockSize)}
		if n := len(out); n > 0 && out[n-1].End() == one.Off {
			out[n-1].Len += one.Len
		} else {
			out = append(out, one)
		}
	})
	return out
}

func TestPresenceAgainstAModel(t *testing.T) {
	sizes := []int64{
		0, 1, 4095, 4096, 4097, 64*BlockSize - 1, 65 * BlockSize, 300*BlockSize + 17,
		pageBlocks * BlockSize, pageBlocks*BlockSize + 1, 3*pageBlocks*BlockSize - 9, 1 << 40, 1<<40 + 333,
	}
	rapid.Check(t, func(t *rapid.T) {
		m := &presenceModel{NewPresence(rapid.SampledFrom(sizes).Draw(t, "size")), make(map[int64]bool)}
		t.Repeat(map[string]func(*rapid.T){
			"Set": func(t *rapid.T) {
				r := m.draw(t)
				m.Set(r)
				m.each(r, func(b int64) {
					if r.Off <= b*BlockSize && min((b+1)*BlockSize, m.Size()) <= r.End() {
						m.blocks[b] = true
					}
				})
			},
			"Clear": func(t *rapid.T) {
				r := m.draw(t)
				m.Clear(r)
				if r.Len > 0 {
					m.each(r, func(b int64) { delete(m.blocks, b) })
				}
			},
			"": func(t *rapid.T) {
				r := m.draw(t)
				if got, want := m.Has(r), m.has(r); got != want {
					t.Fatalf("has %v: %v", r, got)
				}
				for _, present := range []bool{false, true} {
					got, want := m.Missing(r), m.runs(r, present)
					if present {
						got = m.Present(r)
					}
					if fmt.Sprint(got) != fmt.Sprint(want) || (got == nil) != (want == nil) {
						t.Fatalf("present %v in %v: %v, want %v", present, r, got, want)
					}
				}
				if got, want := m.Bytes(), m.bytes(); got != want {
					t.Fatalf("%d bytes, want %d", got, want)
				}
				if got, want := m.Complete(), int64(len(m.blocks)) == BlockCount(m.Size()); got != want {
					t.Fatalf("complete: %v", got)
				}
			},
		})
	})
}

// TestPresenceConcurrently: each goroutine owns every n-th block, so that what it
// reads of its own must be what it did last, though others change the same words.
func TestPresenceConcurrently(t *testing.T) {
	const workers, steps = 8, 3000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := NewPresence(2*pageBlocks*BlockSize - 100)
	blocks := BlockCount(p.Size())
	all := make([]map[int64]bool, workers)
	var wg sync.WaitGroup
	for w := range int64(workers) {
		mine := make(map[int64]bool)
		all[w] = mine
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for range steps {
				// Half of the steps go to one word, where all meet.
				b := rng.Int64N(64)
				if rng.IntN(2) == 0 {
					b = rng.Int64N(blocks)
				}
				b = min(b/workers*workers+w, blocks-workers+w)
				r := Range{Off: b * BlockSize, Len: BlockSize}
				if rng.IntN(3) == 0 {
					p.Clear(r)
					delete(mine, b)
				} else {
					p.Set(r)
					mine[b] = true
				}
				if p.Has(r) != mine[b] {
					t.Errorf("block %d: %v", b, p.Has(r))
				}
				if p.Complete() {
					t.Error("complete, and never was")
				}
			}
		})
	}
	wg.Wait()
	m := &presenceModel{p, make(map[int64]bool)}
	for _, mine := range all {
		maps.Copy(m.blocks, mine)
	}
	whole := Range{Len: p.Size()}
	if got, want := p.Bytes(), m.bytes(); got != want || fmt.Sprint(p.Present(whole)) != fmt.Sprint(m.runs(whole, true)) {
		t.Errorf("%d bytes, want %d", got, want)
	}
}

// TestMissingIsNeverCalledComplete: who has seen a block missing does not then
// hear that the object is complete, though the Clear has not returned.
func TestMissingIsNeverCalledComplete(t *testing.T) {
	p := NewPresence(2 * BlockSize)
	whole := Range{Len: 2 * BlockSize}
	p.Set(whole)
	start := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for range start {
			p.Clear(Range{Len: BlockSize})
		}
	})
	for range 5000 {
		start <- struct{}{}
		for p.Has(whole) {
			runtime.Gosched()
		}
		if p.Complete() {
			t.Error("complete with a block missing")
			break
		}
		p.Set(whole)
	}
	close(start)
	wg.Wait()
}

func TestSparsePresenceOfManyTiBIsSmall(t *testing.T) {
	p := NewPresence(64 << 40)
	p.Set(Range{Off: 63 << 40, Len: 1 << 20})
	pages := 0
	for i := range p.pages {
		if p.pages[i].Load() != nil {
			pages++
		}
	}
	if pages != 1 || p.Bytes() != 1<<20 {
		t.Errorf("%d pages, %d bytes", pages, p.Bytes())
	}
}

func BenchmarkHas(b *testing.B) {
	p := NewPresence(1 << 40)
	p.Set(Range{Off: 1 << 39, Len: 1 << 20})
	for b.Loop() {
		if !p.Has(Range{Off: 1<<39 + 4096, Len: 128 << 10}) {
			b.Fatal("missing")
		}
	}
}
