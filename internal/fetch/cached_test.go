package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// TestReadersOfAnObjectOnDisk has sixteen readers: half read in a row, half at
// random.
func TestReadersOfAnObjectOnDisk(t *testing.T) {
	const size = 24*mib + 123
	root, err := cache.OpenRoot(t.TempDir(), cache.RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	}()
	kept, err := root.Create(cache.Meta{ID: testID, Size: size, SHA256: patternSum(size)})
	if err != nil {
		t.Fatal(err)
	}
	f := New(Options{OnError: func(_ ondemand.ObjectID, err error) { t.Error(err) }})
	defer f.Close()
	o, err := f.Add(Cached(kept), &scripted{size: size, free: true})
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for reader := range 16 {
		rnd := rand.New(rand.NewPCG(seed, uint64(reader)))
		wg.Go(func() {
			off := int64(0)
			for range size / (128 * kib) {
				if reader%2 == 0 {
					off = rnd.Int64N(size)
				}
				r := ondemand.Clip(uint64(off), 128*kib, size)
				off = r.End() % size
				if err := readThrough(t.Context(), f, o, kept.File(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := f.Hydrate(t.Context(), testID, nil); err != nil {
		t.Fatal(err)
	}
	if !o.Complete() || !kept.Meta().Verified {
		t.Error("not complete and verified")
	}
	// Sixteen readers of the same bytes fetch little of it twice.
	if s := f.Stats(testID); s.Fetched > 2*size {
		t.Errorf("%+v", s)
	}
}

// readThrough is a read as the kernel makes it: asked for, perhaps filled, and
// then from the file.
func readThrough(ctx context.Context, f *Fetcher, o *Object, file io.ReaderAt, r ondemand.Range) error {
	if !o.Has(r) {
		if err := f.Fill(ctx, o.ID(), r.Blocks(o.Size())); err != nil {
			return err
		}
	}
	got := make([]byte, r.Len)
	if _, err := file.ReadAt(got, r.Off); err != nil {
		return err
	}
	if !bytes.Equal(got, pattern(r.Off, r.Len)) {
		return errors.New("wrong bytes in " + r.String())
	}
	return nil
}

func TestGroupSharesItsRequests(t *testing.T) {
	f := New(Options{Conns: 3, Group: func(id ondemand.ObjectID, _ source.Blob) string { return string(id[:1]) }})
	defer f.Close()
	add := func(id ondemand.ObjectID) *Object {
		k := newKept(4 * kib)
		k.id = id
		o, err := f.Add(k, &scripted{size: k.size})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	a1, a2, b := add("a1"), add("a2"), add("b1")
	if a1.group != a2.group || a1.group == b.group {
		t.Error("wrong groups")
	}
	f.Remove("a1")
	f.Remove("a2")
	if f.groups[a1.group.name] != nil || f.groups[b.group.name] == nil {
		t.Error("groups do not live as long as their objects")
	}
}

func TestAddRefusesASourceOfAnotherSize(t *testing.T) {
	f := New(Options{})
	defer f.Close()
	if _, err := f.Add(newKept(5), &scripted{size: 6}); !errors.Is(err, ErrSize) {
		t.Errorf("%v", err)
	}
}

// rude is a blob whose bodies break their contract.
type rude struct {
	*scripted
	read func(p []byte) (int, error)
}

func (b rude) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(b), nil
}

func (b rude) Read(p []byte) (int, error) { return b.read(p) }

func TestBodiesThatBreakTheirContract(t *testing.T) {
	for name, c := range map[string]struct {
		read func(p []byte) (int, error)
		want error
	}{
		"never comes on":         {func([]byte) (int, error) { return 0, nil }, io.ErrNoProgress},
		"more than fits":         {func(p []byte) (int, error) { return len(p) + 1, nil }, source.ErrNotBytes},
		"less than nothing":      {func([]byte) (int, error) { return -1, nil }, source.ErrNotBytes},
		"ends too early":         {func([]byte) (int, error) { return 0, io.EOF }, io.ErrUnexpectedEOF},
		"breaks":                 {func([]byte) (int, error) { return 0, errBroken }, errBroken},
		"breaks with some bytes": {func([]byte) (int, error) { return 10, errBroken }, errBroken},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRigOn(t, 64*kib, nil, func(g *rig) source.Blob { return rude{g.blob, c.read} })
			err := g.Fill(t.Context(), testID, ondemand.Range{Len: 4 * kib})
			if !errors.Is(err, c.want) || g.cache.Bytes() != 0 {
				t.Errorf("%v, %d bytes present", err, g.cache.Bytes())
			}
			g.settled(t)
		})
	}
}

func TestBodyThatDoesNotEndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOn(t, 4*kib, nil, func(g *rig) source.Blob {
			return rude{g.blob, func(p []byte) (int, error) { readPattern(p, 0); return len(p), nil }}
		})
		if err := g.Fill(t.Context(), testID, ondemand.Range{Len: 4 * kib}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// The reader has its bytes: the error is nobody's, and so reported.
		if len(g.errs) != 1 || !errors.Is(g.errs[0], source.ErrNotBytes) {
			t.Errorf("reported %v", g.errs)
		}
		g.settled(t)
	})
}
