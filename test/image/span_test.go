package image

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// A layer with a SOCI index has digests of compressed bytes only, which are not kept:
// check says so, and finds nothing wrong.
func TestCheckTellsWhatCannotBeVerified(t *testing.T) {
	r := ocitest.New(t)
	image := formatOf("soci2").packAll(t, tarOf(t, file("one", string(toctest.Random(1, 300_000)))))
	ref := image.push(t, r)
	m := start(t, "")
	dir := m.mount(ref, "mnt")
	compare(t, dir, image.tree(t))
	m.umount(dir)
	r.Stop()
	if out := m.Lacuna("check", "--verify"); !strings.Contains(out, "  unverified  ") || !strings.Contains(out, ", cannot be verified: there is no digest of its bytes") {
		t.Errorf("check says: %s", out)
	}
	if out := m.Lacuna("check", "--verify", "--json"); !strings.Contains(out, `"unverifiable": true`) {
		t.Errorf("check says: %s", out)
	}
}

// ranges counts the bytes of blobs that a registry is asked for.
type ranges struct {
	http.Handler
	mu    sync.Mutex
	asked map[string][][2]int64 // by path
}

// ServeHTTP notes one request.
func (s *ranges) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	var from, last int64
	if _, err := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-%d", &from, &last); err == nil && q.Method == http.MethodGet {
		s.mu.Lock()
		s.asked[q.URL.Path] = append(s.asked[q.URL.Path], [2]int64{from, last + 1})
		s.mu.Unlock()
	}
	s.Handler.ServeHTTP(w, q)
}

// Hydration goes along the spans of a layer, so that each is fetched once: also where
// files and blocks of the device begin in the middle of spans.
func TestHydrateFetchesEachSpanOnce(t *testing.T) {
	registry, _ := newFaulty(t)
	s := &ranges{Handler: registry, asked: make(map[string][][2]int64)}
	r := ocitest.NewFor(t, s)
	var members []member
	for n := range 60 {
		members = append(members, file(fmt.Sprintf("file%03d", n), string(toctest.Random(uint64(n), 3000+n*n*100))))
	}
	// Longer than what other layers are hydrated by.
	members = append(members, file("large", string(toctest.Random(99, 17<<20))))
	image := formatOf("soci2").packAll(t, tarOf(t, members...), tarOf(t, file("over", string(toctest.Random(98, 1<<20)))))
	ref := image.push(t, r)
	m := start(t, "")
	dir := m.mount(ref, "mnt")
	m.Lacuna("hydrate", dir)
	for n, l := range image.layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		var bytes int64
		asked := s.asked["/v2/image/blobs/"+digest.String()]
		for _, a := range asked {
			bytes += a[1] - a[0]
		}
		// Whether it has a table of contents of its own is looked for at its end.
		tail := min(int64(len(l.blob)), 256<<10)
		if most := int64(len(l.blob)) + tail; bytes > most || len(asked) > 3 {
			t.Errorf("layer %d: %d bytes in %d requests, of %d: %v", n+1, bytes, len(asked), len(l.blob), asked)
		}
		status := m.Status().Mounted[0].Layers[n]
		if most := int64(len(l.blob) + len(image.ztocs[n])); status.Fetched > most || status.Requests > 2 || status.Present != status.Size {
			t.Errorf("layer %d: fetched %d bytes in %d requests, want %d in 2", n+1, status.Fetched, status.Requests, most)
		}
	}
	r.Stop()
	compare(t, dir, image.tree(t))
	m.umount(dir)
}

// A reader waits for an index that comes slowly, longer than its deadline, as long as it
// does come.
func TestReaderWaitsForASlowIndex(t *testing.T) {
	registry, r := newFaulty(t)
	data := toctest.Random(1, 3<<20)
	ref := formatOf("soci2").packAll(t, tarOf(t, file("one", string(data)))).push(t, r)
	m := start(t, "deadline = \"2s\"\n")
	registry.set(func() { registry.rate = 320 << 10 }) // 1.5 MiB of windows: 5 s
	dir := m.mount(ref, "mnt")
	reader := ondemandtest.StartReader(t)
	if got := reader.Read(dir+"/one", 1<<20, 4096); got.Errno != 0 || string(got.Data) != string(data[1<<20:][:4096]) {
		t.Errorf("read: %v, %d bytes", got.Errno, len(got.Data))
	}
	registry.set(func() { registry.rate = 0 })
	if s := m.Status(); s.Requests.Expired > 0 {
		t.Errorf("%d requests have expired", s.Requests.Expired)
	}
	reader.Kill()
	m.umount(dir)
}
