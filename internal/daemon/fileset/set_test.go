package fileset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/manifest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/concat"
	"github.com/lacunafs/lacuna/internal/source/mem"
)

// world is a cache with the files of a manifest, and sources that have versions.
type world struct {
	t       *testing.T
	dir     string
	root    *cache.Root
	library *Library
	plan    *Plan
	asked   int
	version map[string]uint64 // of the bytes of each source
}

func newWorld(t *testing.T, list ...manifest.Entry) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), version: make(map[string]uint64)}
	w.open()
	t.Cleanup(func() {
		if err := w.root.Close(); err != nil {
			t.Error(err)
		}
	})
	var err error
	if w.library, err = Open(w.dir); err != nil {
		t.Fatal(err)
	}
	if w.plan, err = w.library.Prepare(list, "sha256:1", time.Unix(1, 2)); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.root, err = cache.OpenRoot(w.dir, cache.RootOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// serving is one life of the first device.
type serving struct {
	w        *world
	set      *Set
	cached   *cache.Object
	fetcher  *fetch.Fetcher
	object   *fetch.Object
	mu       sync.Mutex
	reported []error
}

func (w *world) serve(anew bool) *serving {
	w.t.Helper()
	d := w.plan.Devices[0]
	cached, err := w.root.Create(cache.Meta{ID: d.Object, Size: d.Size})
	if err != nil {
		w.t.Fatal(err)
	}
	s := &serving{w: w, cached: cached, fetcher: fetch.New(fetch.Options{})}
	version := func(name string) source.Blob {
		for n := range d.Parts {
			if d.Parts[n].URL == name {
				return mem.Pattern(d.Parts[n].Size, w.version[name])
			}
		}
		w.t.Errorf("no part comes from %s", name)
		return nil
	}
	s.set, err = w.library.Open(d, cached, Options{
		Anew: anew, Report: func(_ string, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.reported = append(s.reported, err)
		},
		Sources: Sources{
			Ask: func(_ context.Context, name string) (source.Blob, error) {
				w.asked++
				return version(name), nil
			},
			Reopen: func(name string, id source.Identity, _ bool) (source.Blob, error) {
				b := version(name)
				if id.Validator != "" && source.IdentityOf(b) != id {
					return changed{b}, nil
				}
				return b, nil
			},
			Wrap: func(_ string, b source.Blob) source.Blob { return b },
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if s.object, err = s.fetcher.Add(s.set.Object(), s.set.Blob()); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (s *serving) end() {
	s.w.t.Helper()
	s.fetcher.Close()
	if err := errors.Join(s.set.Blob().Close(), s.cached.Close()); err != nil {
		s.w.t.Error(err)
	}
}

// read fills a range of a part and compares it.
func (s *serving) read(n int, off, length int64) error {
	s.w.t.Helper()
	p := s.w.plan.Devices[0].Parts[n]
	r := ondemand.Range{Off: p.Off + off, Len: length}
	if err := s.fetcher.Fill(s.w.t.Context(), s.cached.ID(), r); err != nil {
		return err
	}
	got, want := make([]byte, length), make([]byte, length)
	_, err := s.cached.File().ReadAt(got, r.Off)
	_, werr := mem.PatternAt(s.w.version[p.URL]).ReadAt(want, off)
	if err := errors.Join(err, werr); err != nil {
		s.w.t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		s.w.t.Errorf("%s at %d: wrong bytes", p.Path, off)
	}
	return nil
}

func (s *serving) mustRead(n int, off, length int64) {
	s.w.t.Helper()
	if err := s.read(n, off, length); err != nil {
		s.w.t.Errorf("part %d at %d: %v", n, off, err)
	}
}

// changed is a source that has another version.
type changed struct{ source.Blob }

func (c changed) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, source.ErrChanged
}

func entries(t testing.TB, digest bool, sizes ...int64) (list []manifest.Entry) {
	t.Helper()
	for n, size := range sizes {
		e := manifest.Entry{Path: fmt.Sprintf("d/f%d", n), URL: fmt.Sprintf("http://x/%d", n), Size: size, Mode: 0o444}
		if digest {
			b := make([]byte, size)
			if _, err := mem.PatternAt(0).ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(b)
			e.SHA256 = hex.EncodeToString(sum[:])
			e.URL += "s"
		}
		list = append(list, e)
	}
	return list
}

func TestVersionHoldsUntilMountedAnew(t *testing.T) {
	w := newWorld(t, entries(t, false, 100000, 200000)...)
	s := w.serve(true)
	s.mustRead(0, 0, 4096)
	s.mustRead(1, 0, 4096)
	if w.asked != 2 {
		t.Errorf("asked %d times", w.asked)
	}
	s.end()
	w.version["http://x/0"] = 7
	for range 2 {
		s = w.serve(false)
		if err := s.read(0, 50000, 4096); err == nil {
			t.Error("bytes of another version")
		}
		s.mustRead(1, 150000, 4096)
		if f := s.set.Failed(); len(f) != 1 || f[0].Part.Path != "d/f0" || !errors.Is(f[0].Err, source.ErrChanged) {
			t.Errorf("failed: %+v", f)
		}
		s.end()
	}
	s = w.serve(true)
	s.mustRead(0, 0, 4096)
	s.mustRead(0, 50000, 4096)
	if len(s.set.Failed()) != 0 || !s.cached.Has(ondemand.Range{Off: w.plan.Devices[0].Parts[1].Off, Len: 4096}) {
		t.Errorf("failed: %+v", s.set.Failed())
	}
	s.end()
}

func TestPartWithoutALineIsMissing(t *testing.T) {
	w := newWorld(t, entries(t, false, 100000, 200000)...)
	s := w.serve(true)
	s.mustRead(0, 0, 100000)
	s.mustRead(1, 0, 200000)
	s.end()
	// A loss of power, and the end of the ledger is missing.
	name := w.library.ledgerName(w.plan.Devices[0].Object)
	states, _, err := readLedger(name, 2)
	if err != nil {
		t.Fatal(err)
	}
	states[1] = state{Part: 1}
	if err := rewriteLedger(name, states); err != nil {
		t.Fatal(err)
	}
	w.version["http://x/1"] = 9
	s = w.serve(false)
	if p := w.plan.Devices[0].Parts; !s.cached.Has(p[0].Range()) || s.set.present(&p[1]) {
		t.Error("the wrong part is present")
	}
	s.mustRead(1, 100000, 4096)
	s.mustRead(1, 0, 4096)
	s.end()
}

func TestWrongPartIsDeniedAndStaysSo(t *testing.T) {
	list := entries(t, true, concat.MaxWhole+1, concat.MaxWhole+2, 5000)
	w := newWorld(t, list...)
	w.version["http://x/1s"] = 3
	s := w.serve(true)
	for n, e := range list {
		if n != 1 {
			s.mustRead(n, 0, e.Size)
		}
	}
	s.mustRead(1, 0, 4096) // it cannot be known yet
	err := s.read(1, 0, list[1].Size)
	for deadline := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(deadline); {
		err = s.read(1, 0, 4096)
	}
	if !errors.Is(err, concat.ErrDigest) {
		t.Errorf("wrong part: %v", err)
	}
	s.end()
	s.mu.Lock()
	if len(s.reported) != 1 || !errors.Is(s.reported[0], concat.ErrDigest) {
		t.Errorf("reported %v", s.reported)
	}
	s.mu.Unlock()
	w.version["http://x/1s"] = 0
	s = w.serve(false)
	if err := s.read(1, 0, 4096); err == nil || s.object.Complete() || s.object.Has(w.plan.Devices[0].Parts[1].Range()) {
		t.Errorf("after a restart: %v", err)
	}
	s.mustRead(0, 0, list[0].Size)
	s.end()
	s = w.serve(true)
	s.mustRead(1, 0, list[1].Size)
	for deadline := time.Now().Add(10 * time.Second); !s.object.Complete() && time.Now().Before(deadline); {
		s.mustRead(1, 0, 4096)
	}
	if digests, verified := s.set.Verified(); digests != 3 || verified != 3 || !s.object.Complete() {
		t.Errorf("%d of %d verified, complete %v", verified, digests, s.object.Complete())
	}
	s.end()
}

func TestLayout(t *testing.T) {
	list := entries(t, false, 0, 1, 4096, 4097, ownSize, ownSize-1)
	same := entries(t, true, 10, 10)
	same[1].URL, same[1].SHA256 = "http://elsewhere", same[0].SHA256
	list = append(list, same...)
	devices, places, err := layout(list)
	if err != nil || len(devices) != 2 || devices[0].Size != ownSize || len(devices[1].Parts) != 5 {
		t.Fatalf("%+v, %v", devices, err)
	}
	want := []place{{}, {1, 0}, {1, 4096}, {1, 8192}, {0, 0}, {1, 16384}, {1, 16384 + ownSize}, {1, 16384 + ownSize}}
	for n := range want {
		if places[n] != want[n] {
			t.Errorf("file %d: %+v, want %+v", n, places[n], want[n])
		}
	}
	again, _, err := layout(list)
	if err != nil || again[1].Object != devices[1].Object || again[0].Object == again[1].Object {
		t.Error("objects are named otherwise the second time")
	}
	list[6].URL = "http://moved"
	if again, _, _ = layout(list); again[1].Object != devices[1].Object {
		t.Error("the source of a file with a digest matters")
	}
	list[1].URL = "http://moved"
	if again, _, _ = layout(list); again[1].Object == devices[1].Object {
		t.Error("the source of a file without a digest does not matter")
	}
	var many []manifest.Entry
	for n := range 3 {
		many = append(many, manifest.Entry{Path: strings.Repeat("x", n+1), URL: fmt.Sprint("/", n), Size: manifest.MaxSize})
	}
	if _, _, err := layout(many); !errors.Is(err, ErrTooLarge) {
		t.Errorf("24 TiB: %v", err)
	}
}

func TestOrphans(t *testing.T) {
	w := newWorld(t, entries(t, false, 100000)...)
	s := w.serve(true)
	s.mustRead(0, 0, 4096)
	s.end()
	id := w.plan.Devices[0].Object
	for _, c := range []struct {
		exists, mounted bool
		want            int
	}{{true, true, 0}, {true, false, 0}, {false, true, 1}, {false, false, 2}} {
		got, err := Orphans(w.dir, func(o ondemand.ObjectID) bool { return c.exists && o == id }, func(key string) bool { return c.mounted && key == w.plan.Key })
		if err != nil || len(got) != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}
