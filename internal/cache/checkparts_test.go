package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// partOf is a part of data with its digest.
func partOf(data []byte, off, n int64) Part {
	sum := sha256.Sum256(data[off : off+n])
	return Part{Off: off, Len: n, Digest: &sum}
}

// Three chunks, of which the second ends within a block, a part of which nothing is
// known, and zeros behind and between.
func partsExample() (data []byte, parts []Part) {
	data = content(1, 20*block)
	clear(data[2*block+100 : 4*block])
	clear(data[9*block : 10*block])
	clear(data[19*block:])
	parts = []Part{
		partOf(data, 0, block), partOf(data, block, block+100),
		partOf(data, 4*block, 5*block),
		{Off: 10 * block, Len: 9 * block},
	}
	return data, parts
}

func TestCheckPartsComparesWhatIsWhollyPresent(t *testing.T) {
	data, parts := partsExample()
	o := mustCreate(t, openTestRoot(t, t.TempDir()), metaOf(1, 20*block))
	check := func() Report {
		t.Helper()
		rep, err := o.Check(context.Background(), CheckOptions{Parts: &parts})
		must(t, err)
		return rep
	}
	if rep := check(); rep.Verified || rep.Corrupt() || rep.Compared != 0 {
		t.Errorf("an empty object: %+v", rep)
	}
	mustFill(t, o, data, ondemand.Range{Len: 4 * block})
	if rep := check(); !rep.Verified || rep.Compared != 4*block {
		t.Errorf("two parts and zeros: %+v", rep)
	}
	mustFill(t, o, data, ondemand.Range{Off: 5 * block, Len: 5 * block})
	if rep := check(); rep.Verified || rep.Corrupt() || rep.Compared != 5*block {
		t.Errorf("a part that is there in part: %+v", rep)
	}
	mustFill(t, o, data, ondemand.Range{Off: 4 * block, Len: block})
	if rep := check(); !rep.Verified || rep.Compared != 10*block {
		t.Errorf("three parts and zeros: %+v", rep)
	}
	mustFill(t, o, data, ondemand.Range{Off: 10 * block, Len: 10 * block})
	if rep := check(); rep.Verified || rep.Corrupt() || rep.Compared != 11*block {
		t.Errorf("a part without a digest: %+v", rep)
	}
}

func TestCheckPartsFindsAndRepairsWrongBytes(t *testing.T) {
	data, parts := partsExample()
	for name, c := range map[string]struct {
		at   int64
		want []ondemand.Range
	}{
		"in a part":              {3, []ondemand.Range{{Len: block}}},
		"in one with a padding":  {2*block + 99, []ondemand.Range{{Off: block, Len: 2 * block}}},
		"in the padding":         {2*block + 100, []ondemand.Range{{Off: 2 * block, Len: block}}},
		"in a gap":               {4*block - 1, []ondemand.Range{{Off: 3 * block, Len: block}}},
		"in a long part":         {8 * block, []ondemand.Range{{Off: 4 * block, Len: 5 * block}}},
		"at the end":             {20*block - 1, []ondemand.Range{{Off: 19 * block, Len: block}}},
		"where nothing is known": {12 * block, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := openTestRoot(t, dir)
			o := mustCreate(t, r, metaOf(1, 20*block))
			mustFill(t, o, data, ondemand.Range{Len: 20 * block})
			_, err := o.File().WriteAt([]byte{data[c.at] ^ 1}, c.at)
			must(t, err)
			opt := CheckOptions{Parts: &parts, Repair: true}
			rep, err := o.Check(context.Background(), opt)
			must(t, err)
			if !slices.Equal(rep.Mismatches, c.want) || rep.Verified || rep.Repaired != (c.want != nil) {
				t.Errorf("got %+v, want %v", rep, c.want)
			}
			must(t, r.Close())
			r = openTestRoot(t, dir)
			o = mustCreate(t, r, metaOf(1, 20*block))
			if missing := o.Missing(ondemand.Range{Len: o.Size()}); !slices.Equal(missing, c.want) {
				t.Errorf("after the repair %v are missing, want %v", missing, c.want)
			}
			if rep, err = o.Check(context.Background(), opt); err != nil || rep.Corrupt() {
				t.Errorf("after the repair: %+v, %v", rep, err)
			}
		})
	}
}

func TestCheckPartsRefusesPartsThatDoNotFit(t *testing.T) {
	o := mustCreate(t, openTestRoot(t, t.TempDir()), metaOf(1, 2*block))
	for name, parts := range map[string][]Part{
		"beyond the end": {{Off: block, Len: block + 1}},
		"out of order":   {{Off: block, Len: 1}, {Len: 1}},
		"overlapping":    {{Len: 2}, {Off: 1, Len: 2}},
		"empty":          {{}},
		"before it":      {{Off: -1, Len: 1}},
	} {
		if _, err := o.Check(context.Background(), CheckOptions{Parts: &parts}); !errors.Is(err, errParts) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever is present and wherever bytes are wrong: what is reported holds a wrong
// byte or is of a part that does, and no wrong byte that was compared is left out.
func TestCheckPartsAgainstAModel(t *testing.T) {
	root := openTestRoot(t, t.TempDir())
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		size := int64(rapid.IntRange(1, 40).Draw(rt, "blocks")) * block
		data, parts := drawParts(rt, size)
		o := mustCreate(t, root, metaOf(n, size))
		have := make([]bool, size/block)
		for i := range have {
			if have[i] = rapid.Bool().Draw(rt, "present"); have[i] {
				mustFill(t, o, data, ondemand.Range{Off: int64(i) * block, Len: block})
			}
		}
		wrong := map[int64]bool{}
		for range rapid.IntRange(0, 3).Draw(rt, "wrong") {
			at := rapid.Int64Range(0, size-1).Draw(rt, "at")
			if have[at/block] && !wrong[at] {
				_, err := o.File().WriteAt([]byte{data[at] ^ 1}, at)
				must(t, err)
				wrong[at] = true
			}
		}
		want, compared := modelParts(size, parts, have, wrong)
		rep, err := o.Check(context.Background(), CheckOptions{Parts: &parts})
		must(t, err)
		got := make([]bool, len(have))
		for _, r := range rep.Mismatches {
			for b := r.Off / block; b < r.End()/block; b++ {
				got[b] = true
			}
		}
		if !slices.Equal(got, want) || rep.Compared != compared || rep.Verified != (compared > 0 && compared == rep.Present && !slices.Contains(want, true)) {
			rt.Errorf("got %+v, want blocks %v and %d bytes compared", rep, want, compared)
		}
		must(t, root.Remove(o.ID()))
	})
}

// drawParts makes parts with and without digests, and zeros between them.
func drawParts(rt *rapid.T, size int64) (data []byte, parts []Part) {
	data = make([]byte, size)
	for at := int64(0); at < size; {
		gap := rapid.SampledFrom([]int64{0, 0, 1, 100, block, 3*block - 1}).Draw(rt, "gap")
		n := rapid.SampledFrom([]int64{1, 1000, block, 2*block + 1, 9 * block}).Draw(rt, "length")
		if at+gap+n > size {
			break
		}
		copy(data[at+gap:], content(uint64(at+1), int(n)))
		p := partOf(data, at+gap, n)
		if rapid.IntRange(0, 4).Draw(rt, "digest") == 0 {
			p.Digest = nil
		}
		parts = append(parts, p)
		at += gap + n
	}
	return data, parts
}

// modelParts says which blocks are wrong and how many bytes can be compared.
func modelParts(size int64, parts []Part, have []bool, wrong map[int64]bool) (blocks []bool, compared int64) {
	blocks = make([]bool, len(have))
	owner := make([]int, size)
	for n, p := range parts {
		for at := p.Off; at < p.Off+p.Len; at++ {
			owner[at] = n + 1
		}
	}
	for at := range size {
		if n := owner[at]; n > 0 {
			p := parts[n-1]
			if p.Digest == nil || slices.Contains(have[p.Off/block:(p.Off+p.Len-1)/block+1], false) {
				continue
			}
			if wrong[at] {
				for b := p.Off / block; b <= (p.Off+p.Len-1)/block; b++ {
					blocks[b] = true
				}
			}
			compared++
			continue
		}
		if have[at/block] {
			compared++
			blocks[at/block] = blocks[at/block] || wrong[at]
		}
	}
	return blocks, compared
}
