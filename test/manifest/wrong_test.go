package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// What was read of a large file before it was found wrong does not stay in the page
// cache: from then on nobody reads it, be it through a descriptor that was open before.
func TestWrongDataIsForgotten(t *testing.T) {
	s := newServer(t)
	for name, size := range map[string]int{"shared device": 5 << 20, "own device": 65 << 20} {
		t.Run(name, func(t *testing.T) {
			good, wrong := s.add("good", bytesOf(t, 1, 2<<20), true), s.add("wrong", bytesOf(t, 2, size), true)
			wrong.SHA256 = strings.Repeat("1", 64)
			m := start(t, []*entry{good, wrong})
			m.mount()
			m.wantRight(good)
			f, err := os.Open(filepath.Join(m.dir, "wrong"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Error(err)
				}
			}()
			begin := make([]byte, 64<<10)
			if _, err := f.ReadAt(begin, 0); err != nil || !bytes.Equal(begin, wrong.data[:len(begin)]) {
				t.Fatalf("before it is known to be wrong it is not read: %v", err)
			}
			_, _ = m.read(wrong)
			instance.Eventually(t, 30*time.Second, func() error {
				if at := m.Status().Mounted[0]; at.FailedFiles != 1 {
					return fmt.Errorf("status has %+v", at)
				}
				_, err := f.ReadAt(begin, 0)
				if err == nil {
					return errors.New("it is read still")
				}
				return nil
			})
			m.wantEIO(wrong)
			m.wantRight(good)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			m.umount()
		})
	}
}

// check --verify compares what is present with the digests of the manifest, without
// the sources: files that are verified before they are read, and larger ones.
func TestCheckVerifiesDevicesOfAManifest(t *testing.T) {
	s := newServer(t)
	for _, size := range []int{100_000, 3 << 20, 65 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			one, two := s.add("one", bytesOf(t, 1, size), true), s.add("two", bytesOf(t, 2, size), true)
			none := s.add("none", bytesOf(t, 3, size), false)
			m := start(t, []*entry{one, two, none})
			m.mount()
			m.wantRight(one, two, none)
			m.umount()
			m.Stop()
			s.gone.Store(true)
			defer s.gone.Store(false)
			if out := m.Lacuna("check", "--verify"); !strings.Contains(out, "verified") {
				t.Errorf("check --verify says %s", out)
			}
			m.spoil(two)
			out, err := m.Try("check", "--verify")
			if instance.ExitOf(err) != 4 || !strings.Contains(out, "CORRUPT") || !strings.Contains(out, "other bytes") {
				t.Errorf("check --verify of spoiled data: %v: %s", err, out)
			}
			if out, err := m.Try("check", "--verify", "--repair"); instance.ExitOf(err) != 4 {
				t.Errorf("check --repair: %v: %s", err, out)
			}
			m.Lacuna("check", "--verify")
			s.gone.Store(false)
			m.StartDaemon()
			m.mount()
			m.wantRight(one, two, none)
			m.umount()
		})
	}
}

// spoil changes a byte of a file's data in the cache.
func (m *mounted) spoil(e *entry) {
	m.t.Helper()
	names, err := filepath.Glob(filepath.Join(m.Root, "objects", "*", "*", "data"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			m.t.Fatal(err)
		}
		at := bytes.Index(data, e.data[:4096])
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{^e.data[77]}, int64(at)+77)
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err != nil {
			m.t.Fatal(err)
		}
		return
	}
	m.t.Fatalf("%s is in no object", e.Path)
}
