package manifest

import (
	"fmt"
	"testing"
	"time"
)

// TestTenThousandFiles is about what a mount of many files takes.
func TestTenThousandFiles(t *testing.T) {
	s := newServer(t)
	var list []*entry
	data := bytesOf(t, 1, 10000)
	for n := range 10000 {
		e := s.add(fmt.Sprintf("%02x/%d", n%256, n), data[:1000+n%9000], true)
		list = append(list, e)
	}
	list = append(list, s.add("last", bytesOf(t, 2, 9999), false))
	m := start(t, list)
	began := time.Now()
	m.mount()
	first := time.Since(began)
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests for the mount", n)
	}
	m.umount()
	began = time.Now()
	m.mount()
	t.Logf("%d files mounted in %v, again in %v", len(list), first, time.Since(began))
	m.wantRight(list[0], list[5000], list[10000])
	worker := m.Worker()
	began = time.Now()
	m.Kill(worker)
	m.WaitWorker(worker)
	m.WaitReady()
	t.Logf("worker replaced in %v", time.Since(began))
	m.wantRight(list[1], list[5001], list[9999])
	m.umount()
}
