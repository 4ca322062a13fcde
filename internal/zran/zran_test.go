package zran

import (
	"bytes"
	"compress/gzip"
	"math/rand/v2"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestSmoke(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var plain []byte
	for i := range 40 {
		for range 20000 {
			if i%2 == 0 {
				plain = append(plain, byte(rnd.IntN(256)))
			} else {
				plain = append(plain, "abcdefgh"[rnd.IntN(8)])
			}
		}
	}
	var b bytes.Buffer
	for i := range 2 {
		w := gzip.NewWriter(&b)
		w.Write(plain[i*len(plain)/2 : (i+1)*len(plain)/2])
		w.Close()
	}
	raw := b.Bytes()
	var cps []Checkpoint
	var out bytes.Buffer
	total, err := Build(bytes.NewReader(raw), 1000, &out, func(c Checkpoint) error { cps = append(cps, c); return nil })
	t.Log(total, err, len(cps))
	if !bytes.Equal(out.Bytes(), plain) {
		t.Fatal("build")
	}
	var d Decoder
	for i, c := range cps {
		outEnd, inEnd := int64(len(plain)), int64(len(raw))
		if i+1 < len(cps) {
			outEnd, inEnd = cps[i+1].Out, cps[i+1].In
		}
		dst := make([]byte, outEnd-c.Out)
		if err := d.Decode(dst, c, bytes.NewReader(raw[c.Start():inEnd])); err != nil || !bytes.Equal(dst, plain[c.Out:outEnd]) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
