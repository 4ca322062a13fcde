package prepare

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// sparseLayer is a gzip layer of one file of size bytes, as GNU tar writes it in its
// own format (GNU tar manual, "Storing Sparse Files"): data at its start and at the
// offset at, and nothing else. archive/tar writes no sparse files.
func sparseLayer(t *testing.T, size, at int64, data []byte) []byte {
	t.Helper()
	header := make([]byte, 512)
	put := func(off, n int, v int64) { copy(header[off:off+n], fmt.Sprintf("%0*o", n-1, v)) }
	copy(header, "sparse")
	put(100, 8, 0o644)
	put(108, 8, 0)
	put(116, 8, 0)
	put(124, 12, 2*int64(len(data)))
	put(136, 12, 0)
	header[156] = 'S'
	copy(header[257:], "ustar  \x00")
	for i, v := range []int64{0, int64(len(data)), at, int64(len(data)), size, 0} {
		put(386+12*i, 12, v)
	}
	put(483, 12, size)
	for i := 434; i < 483; i++ {
		header[i] = 0 // two of four places are used
	}
	copy(header[148:], "        ")
	sum := 0
	for _, c := range header {
		sum += int(c)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	tar := append(header, data...)
	tar = append(tar, data...)
	tar = append(tar, make([]byte, (512-2*len(data)%512)%512+1024)...)
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(tar)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// counted is a layer that counts its requests.
type counted struct{ *toctest.Blob }

func (counted) Close() error { return nil }

// A layer of few bytes takes few bytes, however much its files are said to have.
func TestHolesOfALayerTakeNoSpace(t *testing.T) {
	const size, at = 64 << 20, 40<<20 + 100
	data := toctest.Random(1, 5000)
	want := make([]byte, size)
	copy(want, data)
	copy(want[at:], data)
	b := newBench(t)
	packed := sparseLayer(t, size, at, data)
	img := b.image("registry/sparse", layer{data: packed})
	p := b.prepare(img, Asked{Ref: "sparse"}, 1).Layers[0]
	object, err := b.root.Object(p.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := object.Close(); err != nil {
			t.Error(err)
		}
	}()
	st, err := os.Stat(object.DataPath())
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Sys().(*syscall.Stat_t).Blocks * 512; n > 1<<20 || object.Present() > 1<<20 || object.Complete() {
		t.Errorf("%d bytes on disk, %d present, complete %v", n, object.Present(), object.Complete())
	}

	check(t, b, object)

	// What is missing is zeros, which need no request. The plan is whole meanwhile.
	b.prepare(img, Asked{Ref: "sparse"}, 0)
	layer := counted{&toctest.Blob{Bytes: packed}}
	device := b.Device(p, func() (source.Blob, error) { return layer, nil }, nil)
	for _, r := range object.Missing(ondemand.Range{Len: size}) {
		got, err := device.ReadRange(t.Context(), r.Off, r.Len)
		if err != nil {
			t.Fatal(err)
		}
		read, err := io.ReadAll(got)
		if err = errors.Join(err, got.Close()); err != nil || !bytes.Equal(read, want[r.Off:r.End()]) {
			t.Fatalf("%v: wrong bytes, %v", r, err)
		}
		if err := object.Fill(read, r.Off); err != nil {
			t.Fatal(err)
		}
	}
	if err := device.Close(); err != nil || layer.Requests.Load() != 0 {
		t.Errorf("%d requests for zeros, %v", layer.Requests.Load(), err)
	}
	got, err := os.ReadFile(object.DataPath())
	if err != nil || !bytes.Equal(got, want) || !object.Complete() {
		t.Errorf("right %v, complete %v, %v", bytes.Equal(got, want), object.Complete(), err)
	}
}

func check(t *testing.T, b *bench, object *cache.Object) {
	t.Helper()
	parts, err := Parts(b.root.Dir(), object.ID(), object.Size())
	if err != nil {
		t.Fatal(err)
	}
	rep, err := object.Check(context.Background(), cache.CheckOptions{Parts: &parts})
	if err != nil || rep.Corrupt() {
		t.Fatalf("check: %+v, %v", rep, err)
	}
}
