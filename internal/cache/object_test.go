package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

const block = ondemand.BlockSize

// idOf makes an object id out of a number.
func idOf(n int) ondemand.ObjectID {
	sum := sha256.Sum256(fmt.Append(nil, n))
	return ondemand.ObjectID(hex.EncodeToString(sum[:]))
}

// content is n bytes that differ from block to block and from seed to seed.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return b
}

func metaOf(n int, size int64) Meta {
	return Meta{ID: idOf(n), Size: size, Source: json.RawMessage(`{"kind":"test"}`)}
}

func openTestRoot(t testing.TB, dir string) *Root {
	t.Helper()
	r, err := OpenRoot(dir, RootOptions{AllowAnyFilesystem: true, OnError: func(id ondemand.ObjectID, err error) {
		t.Errorf("in the background: %s: %v", id.Short(), err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close root: %v", err)
		}
	})
	return r
}

func mustCreate(t testing.TB, r *Root, m Meta) *Object {
	t.Helper()
	o, err := r.Create(m)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func mustFill(t testing.TB, o *Object, data []byte, r ondemand.Range) {
	t.Helper()
	if err := o.Fill(data[r.Off:r.End()], r.Off); err != nil {
		t.Fatal(err)
	}
}

// verifyPresent compares all that o claims with data.
func verifyPresent(t testing.TB, o *Object, data []byte) {
	t.Helper()
	for _, r := range o.presence.Present(ondemand.Range{Len: o.Size()}) {
		got := make([]byte, r.Len)
		if _, err := o.data.ReadAt(got, r.Off); err != nil {
			t.Fatalf("read %v: %v", r, err)
		}
		if !bytes.Equal(got, data[r.Off:r.End()]) {
			t.Fatalf("%v is claimed and has other bytes", r)
		}
	}
}

func TestFillIsPresentAndSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	size := int64(40*block + 100)
	data := content(1, int(size))
	r := openTestRoot(t, dir)
	o := mustCreate(t, r, metaOf(1, size))
	whole := ondemand.Range{Len: size}
	if got := o.Missing(whole); len(got) != 1 || got[0] != whole {
		t.Fatalf("missing at first: %v", got)
	}
	mustFill(t, o, data, ondemand.Range{Off: 2 * block, Len: 3 * block})
	mustFill(t, o, data, ondemand.Range{Off: 40 * block, Len: 100})
	if o.Present() != 3*block+100 || o.Complete() {
		t.Fatalf("present %d, complete %v", o.Present(), o.Complete())
	}
	if again := mustCreate(t, r, metaOf(1, size)); again != o {
		t.Error("an open object was opened twice")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = openTestRoot(t, dir)
	o = mustCreate(t, r, metaOf(1, size))
	if !o.Recovered().Clean() {
		t.Errorf("after a clean close: %+v", o.Recovered())
	}
	if o.Present() != 3*block+100 {
		t.Fatalf("present after reopening: %d", o.Present())
	}
	verifyPresent(t, o, data)
	for _, m := range o.Missing(whole) {
		mustFill(t, o, data, m)
	}
	if !o.Complete() {
		t.Error("not complete")
	}
	if err := o.SetVerified(); err != nil {
		t.Fatal(err)
	}
	if err := o.Invalidate(ondemand.Range{Off: block, Len: 1}); err != nil {
		t.Fatal(err)
	}
	if o.Complete() || o.Meta().Verified || o.Has(ondemand.Range{Off: block, Len: 1}) {
		t.Error("still complete after a block was invalidated")
	}
}

func TestFillRefusesWhatIsNotWholeBlocks(t *testing.T) {
	r := openTestRoot(t, t.TempDir())
	size := int64(3*block + 7)
	o := mustCreate(t, r, metaOf(1, size))
	for _, c := range []ondemand.Range{
		{Off: 1, Len: block}, {Off: 0, Len: 10}, {Off: 3 * block, Len: 6}, {Off: 3 * block, Len: 8},
		{Off: 3 * block, Len: block}, {Off: 4 * block, Len: 0}, {Off: -block, Len: block}, {Off: 1 << 62, Len: block},
	} {
		if err := o.Fill(make([]byte, c.Len), c.Off); !errors.Is(err, ErrBadFill) {
			t.Errorf("fill %v: %v", c, err)
		}
	}
	if o.Present() != 0 {
		t.Errorf("%d bytes present", o.Present())
	}
	if err := o.Fill(nil, 0); err != nil {
		t.Errorf("empty fill: %v", err)
	}
}
