package zran

import (
	"bytes"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
)

// cpu is the processor time that this process has used: others' load does not
// count.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchmark runs f and a plain decompression of s in turn, and reports f's time as
// a multiple of the other's.
func benchmark(b *testing.B, s stream, f func() error) {
	b.SetBytes(int64(len(s.plain)))
	var plain, ours time.Duration
	for b.Loop() {
		start := cpu(b)
		z, err := gzip.NewReader(struct{ io.Reader }{bytes.NewReader(s.raw)}) // as from a file
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, z); err != nil {
			b.Fatal(err)
		}
		between := cpu(b)
		if err := f(); err != nil {
			b.Fatal(err)
		}
		plain += between - start
		ours += cpu(b) - between
	}
	b.ReportMetric(ours.Seconds()/plain.Seconds(), "of-plain")
}

func BenchmarkZran(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	s := members(b, rnd, mixed(rnd, 16<<20))
	var all []Checkpoint
	b.Run("build", func(b *testing.B) {
		benchmark(b, s, func() error {
			all = all[:0]
			_, err := Build(bytes.NewReader(s.raw), 4<<20, nil, func(c Checkpoint) error {
				all = append(all, c)
				return nil
			})
			return err
		})
	})
	b.Run("decode all spans", func(b *testing.B) {
		var d Decoder
		dst := make([]byte, 16<<20)
		benchmark(b, s, func() error {
			for i, c := range all {
				compressed, to := s.spanOf(all, i, c.Out+1)
				if err := d.Decode(dst[:to-c.Out], c, bytes.NewReader(compressed)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}
