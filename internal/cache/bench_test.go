package cache

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

func BenchmarkFill(b *testing.B) {
	const piece = 128 << 10
	data := content(1, piece)
	for _, c := range []struct {
		name  string
		every int // fills to a checkpoint; 0 for none
	}{{"checkpoints=none", 0}, {"checkpoints=64MiB", 512}, {"checkpoints=each", 1}} {
		b.Run(c.name, func(b *testing.B) {
			r := openTestRoot(b, b.TempDir())
			r.saver.close() // the benchmark makes its own
			r.saver = newCheckpointer(1<<62, func(*Object, error) {})
			const size = 1 << 30
			o := mustCreate(b, r, metaOf(1, size))
			b.SetBytes(piece)
			for n := 0; b.Loop(); n++ {
				off := int64(n) * piece % (size - piece)
				if off == 0 && n > 0 {
					b.StopTimer()
					must(b, o.Invalidate(ondemand.Range{Len: size}))
					b.StartTimer()
				}
				must(b, o.Fill(data, off))
				if c.every > 0 && (n+1)%c.every == 0 {
					must(b, o.Checkpoint())
				}
			}
		})
	}
}

// 1 GiB in fills of one block, with the checkpoints that come.
func BenchmarkFillOneBlock(b *testing.B) {
	data := content(1, block)
	r := openTestRoot(b, b.TempDir())
	const size = 1 << 30
	o := mustCreate(b, r, metaOf(1, size))
	b.SetBytes(block)
	for n := 0; b.Loop(); n++ {
		// Every other block first, so that ranges do not join.
		off := int64(n) * 2 * block
		if off >= size {
			off = (off + block) % size
		}
		must(b, o.Fill(data, off))
	}
}

func BenchmarkHas(b *testing.B) {
	r := openTestRoot(b, b.TempDir())
	o := mustCreate(b, r, metaOf(1, 1<<20))
	must(b, o.Fill(make([]byte, 1<<19), 0))
	for b.Loop() {
		if !o.Has(ondemand.Range{Off: 4 * block, Len: 32 * block}) {
			b.Fatal("missing")
		}
	}
}

func BenchmarkOpenSparse1TiB(b *testing.B) {
	dir := b.TempDir()
	const size = 1 << 40
	r := openTestRoot(b, dir)
	o := mustCreate(b, r, metaOf(1, size))
	for n := range int64(1000) {
		must(b, o.Fill(make([]byte, block), n*(size/1000)&^(block-1)))
	}
	for b.Loop() {
		must(b, o.Close())
		o = mustCreate(b, r, metaOf(1, size))
	}
	if o.Present() != 1000*block {
		b.Errorf("present %d", o.Present())
	}
}

func BenchmarkCreate2000(b *testing.B) {
	for b.Loop() {
		r := openTestRoot(b, b.TempDir())
		for n := range 2000 {
			mustCreate(b, r, metaOf(n, 1<<30))
		}
		must(b, r.Close())
	}
}
