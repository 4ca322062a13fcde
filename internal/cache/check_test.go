package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestCheckFindsAndRepairsWrongBytes(t *testing.T) {
	dir := t.TempDir()
	size := int64(200*block + 5)
	data := content(1, int(size))
	r := openTestRoot(t, dir)
	o := mustCreate(t, r, metaOf(1, size))
	mustFill(t, o, data, ondemand.Range{Len: 50 * block})
	mustFill(t, o, data, ondemand.Range{Off: 150 * block, Len: 50*block + 5})
	ctx := context.Background()
	rep, err := o.Check(ctx, CheckOptions{Verify: sourceOf(data)})
	must(t, err)
	if rep.Corrupt() || !rep.Verified || rep.Compared != 100*block+5 {
		t.Errorf("a good object: %+v", rep)
	}
	for _, off := range []int64{7*block + 100, 8 * block, 200*block + 4} {
		_, err := o.File().WriteAt([]byte{data[off] ^ 1}, off)
		must(t, err)
	}
	must(t, sys.PunchHole(int(o.File().Fd()), 20*block, block))
	wantMismatches := []ondemand.Range{{Off: 7 * block, Len: 2 * block}, {Off: 200 * block, Len: 5}}
	wantHoles := []ondemand.Range{{Off: 20 * block, Len: block}}
	rep, err = o.Check(ctx, CheckOptions{Verify: sourceOf(data)})
	must(t, err)
	if !rep.Corrupt() || rep.Verified || !equalRanges(rep.Mismatches, wantMismatches) || !equalRanges(rep.Holes, wantHoles) {
		t.Errorf("a damaged object: %+v", rep)
	}
	rep, err = o.Check(ctx, CheckOptions{Verify: sourceOf(data), Repair: true})
	must(t, err)
	if !rep.Repaired {
		t.Errorf("not repaired: %+v", rep)
	}
	must(t, r.Close())
	r = openTestRoot(t, dir)
	o = mustCreate(t, r, metaOf(1, size))
	rep, err = o.Check(ctx, CheckOptions{Verify: sourceOf(data)})
	must(t, err)
	if rep.Corrupt() || o.Present() != 97*block {
		t.Errorf("after the repair %d bytes are present: %+v", o.Present(), rep)
	}
}

// A block that becomes missing during a check leaves its neighbours compared,
// and the object unproved.
func TestCheckIsNoProofOfWhatItDidNotCompare(t *testing.T) {
	size := int64(3 * block)
	data := content(1, int(size))
	r := openTestRoot(t, t.TempDir())
	o := mustCreate(t, r, metaOf(1, size))
	ctx := context.Background()
	if rep, err := o.Check(ctx, CheckOptions{Verify: sourceOf(data)}); err != nil || rep.Verified {
		t.Errorf("an empty object: %+v, %v", rep, err)
	}
	mustFill(t, o, data, ondemand.Range{Len: size})
	_, err := o.File().WriteAt([]byte{data[2*block] ^ 1}, 2*block)
	must(t, err)
	for _, wrong := range []bool{true, false} {
		rep, err := o.Check(ctx, CheckOptions{Verify: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			must(t, o.Invalidate(ondemand.Range{Off: block, Len: block}))
			return sourceOf(data)(ctx, off, n)
		}})
		must(t, err)
		if rep.Compared != 2*block || rep.Verified || rep.Corrupt() != wrong {
			t.Errorf("wrong bytes %v: %+v", wrong, rep)
		}
		must(t, o.Invalidate(ondemand.Range{Len: size}))
		mustFill(t, o, data, ondemand.Range{Len: size})
	}
}

func equalRanges(a, b []ondemand.Range) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestCheckDigest(t *testing.T) {
	size := int64(3*checkPiece + 9)
	data := content(1, int(size))
	sum := sha256.Sum256(data)
	m := metaOf(1, size)
	m.SHA256 = hex.EncodeToString(sum[:])
	r := openTestRoot(t, t.TempDir())
	o := mustCreate(t, r, m)
	if err := o.SetVerified(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("verified while empty: %v", err)
	}
	mustFill(t, o, data, ondemand.Range{Len: size})
	must(t, o.SetVerified())
	read := int64(0)
	rep, err := o.Check(context.Background(), CheckOptions{Digest: true, Progress: func(n int64) { read = n }})
	must(t, err)
	if rep.Digest != m.SHA256 || !rep.Verified || read != size {
		t.Errorf("a good object: %+v, read %d", rep, read)
	}
	_, err = o.File().WriteAt([]byte{data[9] ^ 1}, 9)
	must(t, err)
	rep, err = o.Check(context.Background(), CheckOptions{Digest: true, Repair: true})
	must(t, err)
	if !rep.Corrupt() || rep.Verified || !rep.Repaired || o.Present() != 0 || o.Meta().Verified {
		t.Errorf("a damaged object: %+v, %d present", rep, o.Present())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	mustFill(t, o, data, ondemand.Range{Len: size})
	if _, err := o.Check(ctx, CheckOptions{Digest: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestInspect(t *testing.T) {
	r := openTestRoot(t, t.TempDir())
	size := int64(100 * block)
	o := mustCreate(t, r, metaOf(1, size))
	mustFill(t, o, make([]byte, size), ondemand.Range{Len: 20 * block})
	mustFill(t, o, make([]byte, size), ondemand.Range{Off: 55 * block, Len: 10 * block})
	in, err := o.Inspect()
	must(t, err)
	if in.Present != 30*block || in.Missing != 70*block || in.Ranges != 2 || in.OnDisk != 30*block {
		t.Errorf("%+v", in)
	}
	if got, want := in.Bar(10), "██···▒▒···"; got != want {
		t.Errorf("bar %s, want %s", got, want)
	}
	var b bytes.Buffer
	must(t, in.Print(&b, 10))
	for _, want := range []string{string(o.ID()), "(30.0%) in 2 ranges", `source:    {"kind":"test"}`, "not verifiable", "[██···▒▒···]\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	small := mustCreate(t, r, metaOf(2, 3))
	mustFill(t, small, []byte("abc"), ondemand.Range{Len: 3})
	if in, err = small.Inspect(); err != nil || in.Bar(5) != "█████" {
		t.Errorf("bar of three bytes: %s, %v", in.Bar(5), err)
	}
	if in, err = mustCreate(t, r, metaOf(3, 0)).Inspect(); err != nil || in.Bar(3) != "███" || !in.Complete {
		t.Errorf("bar of nothing: %s, %v", in.Bar(3), err)
	}
}
