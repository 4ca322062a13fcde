package tarscan

import (
	"bytes"
	"io"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// BenchmarkScan has the decoding alone beside it, to compare with.
func BenchmarkScan(b *testing.B) {
	var files []toctest.File
	for i := range 200 {
		data := append(toctest.Random(uint64(i), 100_000), toctest.Text(200_000)...)
		files = append(files, toctest.Reg("usr/lib/"+string(rune('a'+i%26))+"/"+string(rune('a'+i/26)), data))
	}
	layer := toctest.Tar(b, files)
	for _, codec := range []toc.Codec{toc.Stored, toc.Gzip, toc.Zstd} {
		blob := pack(b, codec, layer)
		b.Run(codec.String(), func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				if _, _, err := Scan(b.Context(), bytes.NewReader(blob), Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(codec.String()+", decoding alone", func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			var d toc.Decoders
			for b.Loop() {
				r, err := d.Open(codec, bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
