package mem_test

import (
	"bytes"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob { return mem.New(data) })
}

func TestPatternIsAFunctionOfItsOffset(t *testing.T) {
	const size = 1 << 40
	b := mem.Pattern(size, 7)
	whole := make([]byte, 100)
	if _, err := mem.PatternAt(7).ReadAt(whole, size-100); err != nil {
		t.Fatal(err)
	}
	for off := range int64(100) {
		for n := int64(1); n <= 100-off; n++ {
			got, err := sourcetest.Read(t.Context(), b, size-100+off, n)
			if err != nil || !bytes.Equal(got, whole[off:off+n]) {
				t.Fatalf("[%d,+%d) from the end: %v", off, n, err)
			}
		}
	}
	if other := source.IdentityOf(mem.Pattern(size, 8)); other == source.IdentityOf(b) {
		t.Fatalf("patterns of two seeds have one identity: %+v", other)
	}
}

func BenchmarkPattern(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := mem.PatternAt(1).ReadAt(p, 5); err != nil {
			b.Fatal(err)
		}
	}
}
