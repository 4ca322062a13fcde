package manifest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/test/instance"
)

// A mounted list that was hydrated is complete and verified, large files too, and is
// read without its sources.
func TestHydratedListWorksOffline(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	list = append(list, s.add("large", bytesOf(t, 7, 20<<20), true), s.add("own", bytesOf(t, 8, 70<<20), true))
	m := start(t, list)
	m.mount()
	m.Lacuna("hydrate", m.dir)
	if at := m.Status().Mounted[0]; at.Unverified != 0 || at.FailedFiles != 0 {
		t.Errorf("status has %+v", at)
	}
	s.gone.Store(true)
	m.Lacuna("hydrate", m.dir)
	m.wantRight(list...)
	m.umount()
	m.mount()
	m.wantRight(list...)
	m.umount()
}

// What is complete when it is mounted is read past the cache's copy of it where its
// files are large, and otherwise through it; the bytes are the same.
func TestLargeCompleteFilesAreReadDirectly(t *testing.T) {
	for _, c := range []struct {
		name         string
		files, bytes int
		direct       bool
	}{{"large", 3, 5 << 20, true}, {"small", 40, 60 << 10, false}} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			var list []*entry
			for n := range c.files {
				list = append(list, s.add(fmt.Sprintf("f%d", n), bytesOf(t, n, c.bytes+n), true))
			}
			m := start(t, list)
			m.mount()
			m.wantDirect(false)
			m.Lacuna("hydrate", m.dir)
			m.umount()
			m.mount()
			m.wantDirect(c.direct)
			m.wantRight(list...)
			m.umount()
		})
	}
}

// wantDirect wants the mount to read its devices past their page cache, or not to.
func (m *mounted) wantDirect(want bool) {
	m.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, " "+m.dir+" ") {
			if strings.Contains(l, ",directio") != want {
				m.t.Errorf("directly: want %v of %s", want, l)
			}
			return
		}
	}
	m.t.Errorf("%s is not mounted", m.dir)
}

// Files that cannot be had are named, with the exit status of the reason; all others
// are fetched.
func TestHydrateOfAListFetchesTheOthers(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	missing, digest := list[5], list[57]
	large := s.add("large", bytesOf(t, 7, 70<<20), true)
	list = append(list, large)
	digest.SHA256 = strings.Repeat("1", 64) // of 3 MiB, in a device with the others
	m := start(t, list)
	m.mount()
	s.mu.Lock()
	delete(s.files, missing.Path)
	s.mu.Unlock()
	_, err := m.Try("hydrate", m.dir)
	if err == nil || !strings.Contains(err.Error(), "2 of 501 files cannot be had") ||
		!strings.Contains(err.Error(), missing.Path) || !strings.Contains(err.Error(), digest.Path) || instance.ExitOf(err) < 4 {
		t.Errorf("hydrate: %v", err)
	}
	s.gone.Store(true)
	for _, e := range list {
		if e != missing && e != digest {
			m.wantRight(e)
		}
	}
	s.gone.Store(false)
	m.wantEIO(digest)
	s.add(missing.Path, missing.data, true)
	if _, err := m.Try("hydrate", m.dir); instance.ExitOf(err) != 4 || !strings.Contains(err.Error(), "1 of 501 files cannot be had") {
		t.Errorf("hydrate with a file that has another digest: %v", err)
	}
	m.umount()
}
