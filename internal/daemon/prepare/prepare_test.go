package prepare

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc/estargz"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// blob is a layer in memory.
type blob struct {
	*bytes.Reader
	sequential bool
}

func (b blob) Close() error { return nil }

// Sequential implements source.Sequential.
func (b blob) Sequential() bool { return b.sequential }

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(b.Reader, off, n)), nil
}

// bench is a library with what images are prepared in it from.
type bench struct {
	*Library
	t          testing.TB
	root       *cache.Root
	sequential atomic.Bool
	opened     atomic.Int64
	mu         sync.Mutex
	blobs      map[string][]byte // by reference and digest
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, blobs: make(map[string][]byte)}
	var err error
	if b.root, err = cache.OpenRoot(t.TempDir(), cache.RootOptions{AllowAnyFilesystem: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.root.Close(); err != nil {
			t.Error(err)
		}
	})
	if b.Library, err = Open(b.root.Dir()); err != nil {
		t.Fatal(err)
	}
	return b
}

// layer is what a manifest says of one, and the bytes that a registry gives for it.
type layer struct {
	digest  digest.Digest // of data where it is empty
	toc     string
	data    []byte
	comment string // another manifest
}

func (b *bench) image(ref string, layers ...layer) *oci.Image {
	img := &oci.Image{Ref: ref}
	var text string
	for _, l := range layers {
		if l.digest == "" {
			l.digest = digest.FromBytes(l.data)
		}
		from := oci.Layer{Digest: l.digest, Size: int64(len(l.data))}
		if l.toc != "" {
			from.Annotations = map[string]string{estargz.TOCDigest: l.toc}
		}
		text += fmt.Sprintf("%s %s %s\n", l.digest, l.toc, l.comment)
		img.Layers = append(img.Layers, from)
		b.mu.Lock()
		b.blobs[ref+string(l.digest)] = l.data
		b.mu.Unlock()
	}
	img.Digest = digest.FromString(text)
	return img
}

func (b *bench) open(img *oci.Image, l oci.Layer) source.Blob {
	b.opened.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	return blob{bytes.NewReader(b.blobs[img.Ref+string(l.Digest)]), b.sequential.Load()}
}

func (b *bench) try(img *oci.Image, asked Asked) (*Plan, error) {
	return b.Prepare(b.t.Context(), Job{
		Root: b.root, Image: img, Asked: asked,
		Blob: func(_ context.Context, l oci.Layer) (source.Blob, error) { return b.open(img, l), nil },
		Meta: func(_ int, l Layer) (cache.Meta, error) { return cache.Meta{ID: l.Device, Size: l.Size}, nil },
	})
}

// prepare prepares the image, and wants that many layers to be opened for it.
func (b *bench) prepare(img *oci.Image, asked Asked, opened int64) *Plan {
	b.t.Helper()
	before := b.opened.Load()
	p, err := b.try(img, asked)
	if err != nil {
		b.t.Fatal(err)
	}
	if n := b.opened.Load() - before; n != opened {
		b.t.Errorf("%s: %d layers opened, want %d", img.Ref, n, opened)
	}
	if err := p.checkMetadata(); err != nil {
		b.t.Error(err)
	}
	return p
}

// read is the start of the device of the image's layer n.
func (b *bench) read(img *oci.Image, p *Plan, n int, size int64) string {
	b.t.Helper()
	d := b.Device(p.Layers[n], func() (source.Blob, error) { return b.open(img, img.Layers[n]), nil }, nil)
	r, err := d.ReadRange(b.t.Context(), 0, size)
	if err != nil {
		b.t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close(), d.Close()); err != nil {
		b.t.Fatal(err)
	}
	return string(got)
}

func tarOf(t testing.TB, text string) []byte {
	t.Helper()
	return toctest.Tar(t, []toctest.File{toctest.Reg("file", []byte(text))})
}

func estargzOf(t testing.TB, text string) (data []byte, toc string) {
	t.Helper()
	tar := tarOf(t, text)
	z, err := stargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), stargz.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		t.Fatal(err)
	}
	data, err = io.ReadAll(z)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return data, z.TOCDigest().String()
}

// Another registry may say of its bytes that they are a layer's: nothing of it is
// taken for that layer, whichever of them is first.
func TestOtherBytesUnderADigestAreNotShared(t *testing.T) {
	good, goodTOC := estargzOf(t, "good data")
	text := "evil data"
	evil, evilTOC := estargzOf(t, text)
	if len(evil) != len(good) {
		t.Fatal("their sizes tell them apart")
	}
	d := digest.FromBytes(good)
	for name, pair := range map[string][2]layer{
		"verified both":     {{data: good, toc: goodTOC}, {data: evil, digest: d, toc: evilTOC}},
		"evil unverified":   {{data: good, toc: goodTOC}, {data: evil, digest: d}},
		"neither verified":  {{data: good}, {data: evil, digest: d}},
		"good unverified":   {{data: good}, {data: evil, digest: d, toc: evilTOC}},
		"in another format": {{data: tarOf(t, "good data")}, {data: evil, digest: digest.FromBytes(tarOf(t, "good data")), toc: evilTOC}},
	} {
		for _, first := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s/%d", name, first), func(t *testing.T) {
				b := newBench(t)
				images := []*oci.Image{b.image("good/a:v1", pair[0]), b.image("evil/a:v1", pair[1])}
				texts := []string{"good data", text}
				plans := make([]*Plan, 2)
				for _, n := range []int{first, 1 - first} {
					plans[n] = b.prepare(images[n], Asked{Ref: images[n].Ref}, 1)
				}
				if plans[0].Layers[0].Device == plans[1].Layers[0].Device {
					t.Error("they have one device")
				}
				for n, p := range plans {
					if again := b.prepare(images[n], Asked{Ref: images[n].Ref}, 0); again.Key != p.Key {
						t.Error("another plan")
					}
					if p.Layers[0].Format == Scanned {
						continue
					}
					if got := b.read(images[n], p, 0, 9); got != texts[n] {
						t.Errorf("%q is read, want %q", got, texts[n])
					}
				}
			})
		}
	}
}

// A layer that the manifest vouches for is one device, wherever it is from.
func TestVerifiedLayersAreShared(t *testing.T) {
	b := newBench(t)
	data, toc := estargzOf(t, "data")
	one := b.prepare(b.image("one/a:v1", layer{data: data, toc: toc}), Asked{Ref: "one"}, 1)
	two := b.prepare(b.image("two/a:v1", layer{data: data, toc: toc}), Asked{Ref: "two"}, 0)
	if one.Layers[0] != two.Layers[0] || one.Key == two.Key || !one.Layers[0].Verified {
		t.Errorf("%+v, %+v", one, two)
	}
}

// A scanned layer is downloaded once, also where an image has it twice and many
// ask for it, and what somebody has open stays open.
func TestScannedLayerIsPreparedOnce(t *testing.T) {
	b := newBench(t)
	data := tarOf(t, strings.Repeat("data", 10_000))
	var all sync.WaitGroup
	for n := range 8 {
		img := b.image(fmt.Sprintf("r%d/a:v1", n), layer{data: data}, layer{data: data})
		all.Go(func() {
			p, err := b.try(img, Asked{Ref: img.Ref})
			if err != nil {
				t.Error(err)
				return
			}
			o, err := b.root.Object(p.Layers[0].Device)
			if err != nil || !o.Complete() || !o.Has(ondemand.Range{Len: 1}) {
				t.Errorf("object: %v", err)
			}
		})
	}
	all.Wait()
	if n := b.opened.Load(); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
	img := b.image("r0/a:v1", layer{data: data}, layer{data: data})
	p := b.prepare(img, Asked{Ref: img.Ref}, 0)
	o, err := b.root.Object(p.Layers[0].Device)
	if err == nil {
		err = os.Remove(b.tocPath(p.Layers[0].Device))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.prepare(img, Asked{Ref: img.Ref}, 1)
	if err := o.Checkpoint(); err != nil {
		t.Error(err)
	}
	if again, err := b.root.Object(o.ID()); err != nil || again != o {
		t.Errorf("the object was closed: %v", err)
	}
}

// A registry that had ranges and seems to have none does not keep a layer from being
// read that needs them.
func TestRangesThatSeemGone(t *testing.T) {
	b := newBench(t)
	one, oneTOC := estargzOf(t, "one")
	two, twoTOC := estargzOf(t, "two")
	b.prepare(b.image("one/a:v1", layer{data: one, toc: oneTOC}), Asked{Ref: "a"}, 1)
	b.sequential.Store(true)
	p := b.prepare(b.image("one/b:v1", layer{data: one, toc: oneTOC}, layer{data: two, toc: twoTOC}), Asked{Ref: "b"}, 1)
	if p.Layers[0].Format != EStargz || p.Layers[1].Format != Scanned || p.Sequential {
		t.Errorf("%+v", p)
	}
}

// A plan stays what it is when the image gets other devices, and when it is asked for
// by another name.
func TestPlansNeverChange(t *testing.T) {
	b := newBench(t)
	data, toc := estargzOf(t, "data")
	asked, other := Asked{Ref: "a"}, Asked{Ref: "a", Platform: "linux/amd64"}
	img := b.image("one/a:v1", layer{data: data, toc: toc})
	first := b.prepare(img, asked, 1)
	name := filepath.Join(filepath.Dir(first.Metadata), "plan.json")
	before, err := os.ReadFile(name)
	if err == nil {
		err = os.Remove(b.tocPath(first.Layers[0].Device))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.sequential.Store(true)
	second := b.prepare(img, other, 1)
	if second.Key == first.Key || second.Layers[0].Format != Scanned || !second.Sequential {
		t.Errorf("without ranges: %+v", second)
	}
	if after, err := os.ReadFile(name); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the plan is another one: %v", err)
	}
	for asked, want := range map[Asked]string{asked: first.Key, other: second.Key} {
		if p, err := b.last(asked); err != nil || p.Key != want {
			t.Errorf("%+v: %+v, %v", asked, p, err)
		}
	}
	if p, err := b.Find(asked); p != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a table of contents: %+v, %v", p, err)
	}
	if p, err := b.Find(Asked{Ref: "nothing"}); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// What a name means is the last that it meant, also where that is an image of before.
func TestFindFollowsTheName(t *testing.T) {
	b := newBench(t)
	data, toc := estargzOf(t, "data")
	one := b.image("r/a:v1", layer{data: data, toc: toc})
	two := b.image("r/a:v1", layer{data: data, toc: toc, comment: "two"})
	for _, tt := range []struct {
		img    *oci.Image
		opened int64
	}{{one, 1}, {two, 0}, {one, 0}} {
		p := b.prepare(tt.img, Asked{Ref: "a"}, tt.opened)
		if found, err := b.Find(Asked{Ref: "a"}); err != nil || found.Key != p.Key || found.Image.Digest != tt.img.Digest {
			t.Errorf("%+v, %v, want %s", found, err, p.Key)
		}
	}
}
