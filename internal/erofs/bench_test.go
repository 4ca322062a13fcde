package erofs

import (
	"bytes"
	"io"
	"testing"
)

// BenchmarkWrite writes the metadata of 120,000 files.
func BenchmarkWrite(b *testing.B) {
	img := large()
	size := len(write(b, img))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := Write(io.Discard, img); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size), "image-bytes")
}

// BenchmarkTree reads the same back.
func BenchmarkTree(b *testing.B) {
	image := write(b, large())
	b.SetBytes(int64(len(image)))
	b.ReportAllocs()
	for b.Loop() {
		r, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Tree(); err != nil {
			b.Fatal(err)
		}
	}
}
