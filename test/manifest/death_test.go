package manifest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

func TestWorkerDiesUnderReaders(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	m := startWith(t, list, time.Minute) // a busy machine takes long for a new worker
	m.mount()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	stop := make(chan struct{})
	var reads atomic.Int64
	var readers sync.WaitGroup
	for n := range 8 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				e := list[random.IntN(len(list))]
				if got, err := m.read(e); err != nil || !bytes.Equal(got, e.data) {
					t.Errorf("%s: %d bytes of %d, %v", e.Path, len(got), len(e.data), err)
				}
				reads.Add(1)
			}
		})
	}
	for range 10 {
		before := reads.Load()
		instance.Eventually(t, 30*time.Second, func() error {
			if n := reads.Load() - before; n < 20 {
				return fmt.Errorf("%d reads", n)
			}
			return nil
		})
		worker := m.Worker()
		m.Kill(worker)
		m.WaitWorker(worker)
		m.WaitReady()
	}
	close(stop)
	readers.Wait()
	t.Logf("%d reads, %d requests", reads.Load(), s.requests.Load())
	m.wantRight(list...)
	m.wantFailed(nil)
	m.umount()
}

func TestServerGoneAndBack(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	m := start(t, list)
	s.gone.Store(true)
	m.mount() // which asks nothing
	for _, e := range list[:3] {
		if len(e.data) > 0 {
			m.wantEIO(e)
		}
	}
	s.gone.Store(false)
	m.wantRight(list[:250]...)
	m.wantFailed(nil)
	m.umount()
	m.Stop()
	m.Check()

	// A new instance, and the sources do not answer.
	s.gone.Store(true)
	m.StartDaemon()
	began := time.Now()
	m.mount()
	t.Logf("mounted again in %v", time.Since(began))
	m.wantRight(list[:250]...)
	m.wantEIO(list[499])
	s.gone.Store(false)
	m.wantRight(list...)
	if n := s.requests.Load(); n > 4*int64(len(list)) {
		t.Errorf("%d requests", n)
	}
	m.umount()
}

// TestVersionWithoutValidatorIsOfOneMount: bytes that cannot be recognised are kept
// for the mount, also over a worker's death, and asked for again by the next.
func TestVersionWithoutValidatorIsOfOneMount(t *testing.T) {
	s := newServer(t)
	e := s.add("a/b", bytesOf(t, 1, 100000), false)
	s.set("a/b", served{data: e.data})
	whole := s.add("a/c", bytesOf(t, 2, 100000), true)
	s.set("a/c", served{data: whole.data})
	m := start(t, []*entry{e, whole})
	m.mount()
	m.wantRight(e, whole)
	worker := m.Worker()
	m.Kill(worker)
	m.WaitWorker(worker)
	m.WaitReady()
	dropCaches(t)
	m.wantRight(e, whole)
	m.umount()
	e.data = bytesOf(t, 3, 100000)
	s.set("a/b", served{data: e.data})
	m.mount()
	m.wantRight(e, whole)
	m.umount()
}

func TestSizesThatAreNotGiven(t *testing.T) {
	s := newServer(t)
	list := some(t, s)[:60]
	for _, e := range list[:40] {
		e.Size = nil
	}
	local := filepath.Join(t.TempDir(), "local file")
	data := bytesOf(t, 77, 50000)
	if err := os.WriteFile(local, data, 0o600); err != nil {
		t.Fatal(err)
	}
	list = append(list, &entry{Path: "local", URL: local, data: data})
	m := start(t, list)
	m.mount()
	if n := s.requests.Load(); n != 40 {
		t.Errorf("%d requests for 40 sizes", n)
	}
	m.wantRight(list...)
	m.umount()
	m.Stop()
	s.gone.Store(true)
	m.StartDaemon()
	m.mount() // with the sizes of the last time
	m.wantRight(list...)
	m.umount()
	// A manifest that was never mounted needs its sizes.
	m.write(list[:20])
	if _, err := m.Try("mount", "--manifest", m.name, m.dir); instance.ExitOf(err) != 5 {
		t.Errorf("mount without sizes: %v", err)
	}
}

func TestSameBytesAreFetchedOnce(t *testing.T) {
	s := newServer(t)
	data := bytesOf(t, 5, 100000)
	var list []*entry
	for n := range 50 {
		list = append(list, s.add(fmt.Sprintf("copy%d", n), data, true))
	}
	m := start(t, list)
	m.mount()
	m.wantRight(list...)
	if n := s.requests.Load(); n > 2 {
		t.Errorf("%d requests", n)
	}
	// Another manifest has the same bytes from elsewhere.
	other := m.dir + "2"
	for _, e := range list {
		e.Path, e.URL = "x/"+e.Path, "http://127.0.0.1:1/nowhere"
	}
	m.write(list)
	m.Lacuna("mount", "--manifest", m.name, other)
	first := m.dir
	m.dir = other
	m.wantRight(list...)
	m.umount()
	m.dir = first
	m.umount()
}
