package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/test/instance"
)

// server has files by their names.
type server struct {
	*httptest.Server
	requests atomic.Int64
	gone     atomic.Bool // connections break

	mu    sync.Mutex
	files map[string]served
}

type served struct {
	data []byte
	etag string // empty: it sends no validator
	odd  func(http.ResponseWriter, *http.Request)
}

func newServer(t *testing.T) *server {
	s := &server{files: make(map[string]served)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(name string, f served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = f
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if s.gone.Load() {
		panic(http.ErrAbortHandler)
	}
	s.mu.Lock()
	f, ok := s.files[r.URL.Path[1:]]
	s.mu.Unlock()
	switch {
	case !ok:
		http.NotFound(w, r)
	case f.odd != nil:
		f.odd(w, r)
	default:
		if f.etag != "" {
			w.Header().Set("ETag", f.etag)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.data))
	}
}

// entry is a line of a manifest. Its data is what its file must have.
type entry struct {
	Path   string `json:"path"`
	URL    string `json:"url"`
	Size   *int64 `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Mode   string `json:"mode,omitempty"`
	MTime  string `json:"mtime,omitempty"`
	data   []byte
}

// bytesOf are n bytes that differ from seed to seed.
func bytesOf(t testing.TB, seed, n int) []byte {
	b := make([]byte, n)
	if _, err := mem.PatternAt(seed).ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// add puts a file on the server and returns its entry.
func (s *server) add(name string, data []byte, digest bool) *entry {
	s.set(name, served{data: data, etag: `"v1"`})
	size := int64(len(data))
	e := &entry{Path: name, URL: s.URL + "/" + name, Size: &size, data: data}
	if digest {
		e.SHA256 = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	return e
}

// mounted is an instance with a manifest.
type mounted struct {
	*instance.Instance
	t    *testing.T
	name string // of the manifest
	dir  string
}

func start(t *testing.T, list []*entry) *mounted {
	t.Helper()
	return startWith(t, list, 3*time.Second)
}

// startWith is start for readers that wait so long.
func startWith(t *testing.T, list []*entry, deadline time.Duration) *mounted {
	t.Helper()
	m := &mounted{Instance: instance.New(t, fmt.Sprintf("deadline = %q\n", deadline)), t: t}
	m.name, m.dir = filepath.Join(m.Dir, "files.json"), filepath.Join(m.Dir, "mnt")
	m.write(list)
	m.StartDaemon()
	return m
}

func (m *mounted) write(list []*entry) {
	m.t.Helper()
	b, err := json.Marshal(list)
	if err == nil {
		err = os.WriteFile(m.name, b, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mounted) mount() string {
	m.t.Helper()
	return m.Lacuna("mount", "--manifest", m.name, m.dir)
}

func (m *mounted) umount() {
	m.t.Helper()
	m.Lacuna("umount", m.dir)
	if _, err := os.Lstat(m.dir); !os.IsNotExist(err) {
		m.t.Errorf("%s is still there: %v", m.dir, err)
	}
}

func (m *mounted) read(e *entry) ([]byte, error) { return os.ReadFile(filepath.Join(m.dir, e.Path)) }

// wantRight wants a file to have its bytes.
func (m *mounted) wantRight(list ...*entry) {
	m.t.Helper()
	for _, e := range list {
		if got, err := m.read(e); err != nil || !bytes.Equal(got, e.data) {
			m.t.Errorf("%s: %d bytes of %d, %v", e.Path, len(got), len(e.data), err)
		}
	}
}

// wantEIO wants a file not to be had.
func (m *mounted) wantEIO(e *entry) {
	m.t.Helper()
	if got, err := m.read(e); !errors.Is(err, syscall.EIO) {
		m.t.Errorf("%s: %d bytes, %v; want EIO", e.Path, len(got), err)
	}
}

// wantFailed wants status to tell of these files, with a word of the reason.
func (m *mounted) wantFailed(want map[string]string) {
	m.t.Helper()
	at := m.Status().Mounted
	if len(at) != 1 || at[0].FailedFiles != len(want) {
		m.t.Fatalf("status has %+v, want %v", at, want)
	}
	for _, f := range at[0].Failed {
		if word, ok := want[f.Path]; !ok || !strings.Contains(f.Error, word) {
			m.t.Errorf("status says %+v, want %q", f, word)
		}
	}
	text := m.Lacuna("status")
	for name := range want {
		if !strings.Contains(text, "  error     "+name+": ") {
			m.t.Errorf("status has no line of %s:\n%s", name, text)
		}
	}
}

// some are 500 files in directories, of sizes from 0 to 3 MiB.
func some(t testing.TB, s *server) (list []*entry) {
	for n := range 500 {
		size := []int{0, 1, 100, 4095, 4096, 4097, 20000, 70000}[n%8]
		if n%50 == 7 {
			size = 3<<20 + n
		}
		e := s.add(fmt.Sprintf("d%d/e%d/f%d", n%7, n%13, n), bytesOf(t, n, size), n%3 != 0)
		if n%5 == 0 {
			e.Mode, e.MTime = "0750", "2020-02-02T02:02:02.5Z"
		}
		list = append(list, e)
	}
	return list
}

func TestTreeHasRightNamesAndBytes(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	m := start(t, list)
	began := time.Now()
	t.Log(m.mount(), time.Since(began))
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests for the mount", n)
	}
	want := make(map[string]*entry)
	for _, e := range list {
		want[e.Path] = e
	}
	found := 0
	err := fs.WalkDir(os.DirFS(m.dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		found++
		e := want[path]
		if e == nil || st.Size() != *e.Size {
			t.Errorf("%s: %v", path, st)
			return nil
		}
		mode, at := fs.FileMode(0o444), time.Time{}
		if e.Mode != "" {
			mode, at = 0o750, time.Date(2020, 2, 2, 2, 2, 2, 5e8, time.UTC)
		}
		if st.Mode() != mode || !at.IsZero() && !st.ModTime().Equal(at) {
			t.Errorf("%s: mode %v, time %v", path, st.Mode(), st.ModTime())
		}
		return nil
	})
	if err != nil || found != len(list) {
		t.Errorf("%d names of %d, %v", found, len(list), err)
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests for the names", n)
	}
	began = time.Now()
	m.wantRight(list...)
	t.Logf("%d files read in %v, %d requests", len(list), time.Since(began), s.requests.Load())
	m.wantFailed(nil)
	at := m.Status().Mounted[0]
	if at.Files != 500 || at.Manifest != m.name || at.Layers[0].Present != at.Layers[0].Size || at.Unverified != 0 || at.Unverifiable == 0 {
		t.Errorf("status has %+v", at)
	}
	m.umount()
	m.mount()
	s.gone.Store(true)
	m.wantRight(list...) // all is present
	m.umount()
}

func TestFailureIsOfOneFile(t *testing.T) {
	s := newServer(t)
	list := some(t, s)
	digest, small, missing, sequential, changed := list[1], list[4], list[5], list[6], list[10]
	digest.SHA256 = strings.Repeat("0", 64)
	larger := int64(len(small.data) + 1)
	small.Size = &larger
	s.mu.Lock()
	delete(s.files, missing.Path)
	s.mu.Unlock()
	s.set(sequential.Path, served{odd: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(sequential.data)))
		_, _ = w.Write(sequential.data)
	}})
	big := list[57] // of 3 MiB, without a digest
	m := start(t, list)
	m.mount()
	f, err := os.Open(filepath.Join(m.dir, big.Path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	s.set(big.Path, served{data: bytesOf(t, 9999, len(big.data)), etag: `"v2"`})
	if n, err := f.ReadAt(make([]byte, 4096), 2<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("%d bytes of the changed file, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.set(changed.Path, served{data: changed.data[:len(changed.data)/2], etag: `"v1"`})
	bad := map[*entry]string{digest: "sha256", small: "changed", missing: "not found", big: "changed", changed: "changed"}
	want := make(map[string]string)
	for _, e := range list {
		if word, ok := bad[e]; ok {
			m.wantEIO(e)
			want[e.Path] = word
		} else {
			m.wantRight(e)
		}
	}
	m.wantFailed(want)

	// What is made right comes when it is asked for again, but for a file whose
	// version is known: that is bound to it until the manifest is mounted anew.
	s.add(missing.Path, missing.data, true)
	s.add(changed.Path, changed.data, true)
	s.set(big.Path, served{data: bytesOf(t, 9999, len(big.data)), etag: `"v2"`})
	m.wantRight(missing, changed)
	if _, err := m.read(big); !errors.Is(err, syscall.EIO) {
		t.Errorf("changed file: %v", err)
	}
	m.umount()
	m.mount()
	big.data = bytesOf(t, 9999, len(big.data))
	m.wantRight(big, missing, changed, list[3])
	m.umount()
}

func TestLargeFileIsVerifiedOnceItIsHere(t *testing.T) {
	s := newServer(t)
	good, wrong := s.add("good", bytesOf(t, 1, 5<<20), true), s.add("wrong", bytesOf(t, 2, 5<<20), true)
	own := s.add("own", bytesOf(t, 3, 65<<20), true)
	wrong.SHA256 = strings.Repeat("1", 64)
	m := start(t, []*entry{good, wrong, own})
	m.mount()
	m.wantRight(good, own)
	_, _ = m.read(wrong) // right up to the end, which may find it out
	instance.Eventually(t, 10*time.Second, func() error {
		at := m.Status().Mounted[0]
		if at.FailedFiles != 1 || at.Unverified != 1 || len(at.Layers) != 2 || !at.Layers[0].Verified {
			return fmt.Errorf("status has %+v", at)
		}
		return nil
	})
	dropCaches(t)
	m.wantEIO(wrong)
	m.wantFailed(map[string]string{"wrong": "sha256"})
	dead := m.Worker()
	m.Kill(dead)
	m.WaitWorker(dead)
	m.WaitReady()
	dropCaches(t)
	m.wantEIO(wrong)
	m.wantRight(good, own)
	m.umount()
}

func dropCaches(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}
