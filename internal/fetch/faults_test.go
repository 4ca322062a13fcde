package fetch

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

const faultySize = 300001

// faults are all that a server of sourcetest can do wrong; true where only a
// time-out ends it.
var faults = map[string]struct {
	fault sourcetest.Fault
	waits bool
}{
	"whole":                   {sourcetest.Whole, false},
	"shifted":                 {sourcetest.Shifted, false},
	"ends early":              {sourcetest.EndsEarly, false},
	"no Content-Range":        {sourcetest.ContentRange(""), false},
	"malformed Content-Range": {sourcetest.ContentRange("bytes 0-/300001"), false},
	"range of another place":  {sourcetest.ContentRange("bytes 0-99/300001"), false},
	"wrong total":             {sourcetest.WrongTotal, false},
	"total unknown": {func(a *sourcetest.Answer) {
		if a.Header.Get("Content-Range") != "" {
			sourcetest.TotalUnknown(a)
		}
	}, false},
	"closed at once":      {sourcetest.Cut(0, sourcetest.Closed), false},
	"closed":              {sourcetest.Cut(9000, sourcetest.Closed), false},
	"reset at once":       {sourcetest.Cut(0, sourcetest.Reset), false},
	"reset":               {sourcetest.Cut(9000, sourcetest.Reset), false},
	"stalled at once":     {sourcetest.Cut(0, sourcetest.Stalled), true},
	"stalled":             {sourcetest.Cut(9000, sourcetest.Stalled), true},
	"silent":              {sourcetest.Silent, true},
	"short, framed":       {sourcetest.ShortFramed, false},
	"short, chunked":      {sourcetest.ShortChunked, false},
	"long, framed":        {sourcetest.LongFramed, false},
	"long, chunked":       {sourcetest.LongChunked, false},
	"chunked":             {sourcetest.Chunked, false},
	"no length":           {sourcetest.NoLength, false},
	"204":                 {sourcetest.Status(204, ""), false},
	"302 to nowhere":      {sourcetest.Status(302, ""), false},
	"304":                 {sourcetest.Status(304, ""), false},
	"403":                 {sourcetest.Status(403, ""), false},
	"404":                 {sourcetest.Status(404, ""), false},
	"412":                 {sourcetest.Status(412, ""), false},
	"429":                 {sourcetest.Status(429, "0"), false},
	"500":                 {sourcetest.Status(500, ""), false},
	"503":                 {sourcetest.Status(503, ""), false},
	"416":                 {sourcetest.Unsatisfiable(faultySize), false},
	"416 of another size": {sourcetest.Unsatisfiable(100), false},
	"other ETag":          {sourcetest.Header("ETag", `"v2"`), false},
	"weak ETag":           {sourcetest.Header("ETag", `W/"v1"`), false},
	"no ETag":             {sourcetest.Header("ETag", ""), false},
	"gzip":                {sourcetest.Gzip, false},
	"multipart":           {sourcetest.Multipart, false},
	"maintenance page": {func(a *sourcetest.Answer) {
		page := []byte("<html>back soon</html>")
		a.Status, a.Header, a.Off, a.N, a.Content = http.StatusOK, http.Header{}, 0, int64(len(page)), bytes.NewReader(page)
	}, false},
}

// faulty is the whole way of bytes from a server to a file of the cache.
type faulty struct {
	t      *testing.T
	data   []byte
	server *sourcetest.Server
	blob   source.Blob
	kept   *cache.Object
	*Fetcher
}

// open makes the blob, which waits so long for the server.
func (g *faulty) open(patience time.Duration) {
	g.t.Helper()
	var b source.Blob
	for tries := 0; b == nil; tries++ {
		var err error
		b, err = httprange.Open(g.t.Context(), g.server.URL(), httprange.Options{Stall: patience, ResponseHeader: patience})
		if err != nil && tries == 100 { // a busy machine makes it wait longer
			g.t.Fatal(err)
		}
	}
	g.t.Cleanup(func() {
		if err := b.Close(); err != nil {
			g.t.Error(err)
		}
	})
	g.blob = retry.Wrap(b, retry.Policy{Attempts: 3, First: time.Millisecond})
}

func (g *faulty) add() {
	g.t.Helper()
	g.Remove(testID)
	if _, err := g.Add(Cached(g.kept), g.blob); err != nil {
		g.t.Fatal(err)
	}
}

// reads reads at several places at once and returns how many got their bytes.
func (g *faulty) reads() (good int) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, r := range []ondemand.Range{{Len: 5000}, {Off: 40960, Len: 100000}, {Off: 200000, Len: 1}, {Off: faultySize - 10, Len: 10}} {
		wg.Go(func() {
			err := g.Fill(ctx, testID, r.Blocks(faultySize))
			got := make([]byte, r.Len)
			if err == nil {
				_, err = g.kept.File().ReadAt(got, r.Off)
				if err != nil || !bytes.Equal(got, g.data[r.Off:r.End()]) {
					g.t.Errorf("%v: wrong bytes, %v", r, err)
				}
				mu.Lock()
				good++
				mu.Unlock()
			}
			if ctx.Err() != nil {
				g.t.Errorf("%v hangs: %v", r, err)
			}
		})
	}
	wg.Wait()
	return good
}

// check compares all that is claimed.
func (g *faulty) check(o *cache.Object) {
	g.t.Helper()
	got := make([]byte, ondemand.BlockSize)
	for off := int64(0); off < faultySize; off += ondemand.BlockSize {
		r := ondemand.Range{Off: off, Len: min(ondemand.BlockSize, faultySize-off)}
		if !o.Has(r) {
			continue
		}
		if _, err := o.File().ReadAt(got[:r.Len], off); err != nil || !bytes.Equal(got[:r.Len], g.data[off:r.End()]) {
			g.t.Errorf("%v is claimed and wrong: %v", r, err)
		}
	}
}

func openFaulty(t *testing.T, dir string) *cache.Root {
	t.Helper()
	root, err := cache.OpenRoot(dir, cache.RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	return root
}

// Whatever a server does, a reader gets right bytes or an error and soon, the
// cache claims nothing wrong, and once the server is well again all comes.
func TestFaultsOnTheWayToDisk(t *testing.T) {
	for name, c := range faults {
		for _, sequential := range []bool{false, true} {
			for _, always := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, sequential %v, always %v", name, sequential, always), func(t *testing.T) {
					t.Parallel()
					testFault(t, c.fault, sequential, always, c.waits)
				})
			}
		}
	}
}

func testFault(t *testing.T, fault sourcetest.Fault, sequential, always, waits bool) {
	dir, err := os.MkdirTemp("/var/tmp", "lacuna-faults-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	const long = 10 * time.Second // longer than a busy machine makes an answer wait
	g := &faulty{t: t, data: sourcetest.Bytes(faultySize)}
	g.server = sourcetest.NewServer(t, g.data)
	healthy := func(*sourcetest.Answer) {}
	if sequential {
		healthy = sourcetest.Whole
	}
	g.server.Always(healthy)
	if waits {
		g.open(100 * time.Millisecond)
	} else {
		g.open(long)
	}
	root := openFaulty(t, dir)
	if g.kept, err = root.Create(cache.Meta{ID: testID, Size: faultySize}); err != nil {
		t.Fatal(err)
	}
	g.Fetcher = New(Options{})
	t.Cleanup(g.Close)
	g.add()

	bad := func(a *sourcetest.Answer) { healthy(a); fault(a) }
	if always {
		g.server.Always(bad)
	} else {
		g.server.Next(bad, bad)
	}
	g.reads()
	g.check(g.kept)
	g.server.Always(healthy)
	if waits {
		g.open(long)
	}
	g.add() // what was poisoned begins anew, as after another attach
	for tries := 0; g.reads() < 4; tries++ {
		if tries == 3 { // a fault that was still queued costs one
			t.Fatal("readers get errors of a server that is well")
		}
		g.add()
	}
	if err := g.Hydrate(t.Context(), testID, nil); err != nil {
		t.Errorf("hydrate: %v", err)
	}
	g.check(g.kept)
	g.Close()
	if err := root.Close(); err != nil {
		t.Error(err)
	}
	again, err := openFaulty(t, dir).Object(testID)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Complete() {
		t.Errorf("%d bytes present after reopening", again.Present())
	}
	g.check(again)
}
