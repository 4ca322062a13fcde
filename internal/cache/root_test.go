package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestSecondOpenerIsToldThePid(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	var inUse *InUseError
	if _, err := OpenRoot(dir, RootOptions{AllowAnyFilesystem: true}); !errors.As(err, &inUse) || inUse.PID != os.Getpid() || inUse.Dir != dir {
		t.Fatalf("second opener: %v", err)
	}
	// The keeper's duplicate holds the lock on, and hands it to the next instance.
	kept, err := r.Lock().Dup()
	must(t, err)
	must(t, r.Close())
	if _, err := OpenRoot(dir, RootOptions{AllowAnyFilesystem: true}); !errors.As(err, &inUse) {
		t.Fatalf("while the keeper holds the lock: %v", err)
	}
	r, err = OpenRoot(dir, RootOptions{AllowAnyFilesystem: true, Lock: kept, Holder: 4242})
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(dir, lockName)); err != nil || string(b) != "4242\n" {
		t.Errorf("the lock file names %q: %v", b, err)
	}
	must(t, r.Close())
	openTestRoot(t, dir)
}

func TestLockOfAnotherRootIsRefused(t *testing.T) {
	one := openTestRoot(t, t.TempDir())
	dup, err := one.Lock().Dup()
	must(t, err)
	defer func() { must(t, dup.Close()) }()
	if _, err := OpenRoot(t.TempDir(), RootOptions{AllowAnyFilesystem: true, Lock: dup}); err == nil {
		t.Error("accepted")
	}
}

func TestLastBeatIsOfTheInstanceBefore(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	if !r.LastBeat().IsZero() {
		t.Errorf("a new root beat at %v", r.LastBeat())
	}
	before := time.Now().Add(-time.Second)
	must(t, r.Beat())
	must(t, r.Close())
	past := before.Add(-time.Hour)
	must(t, os.Chtimes(filepath.Join(dir, lockName), past, past))
	r = openTestRoot(t, dir)
	if !r.LastBeat().Equal(past) {
		t.Errorf("last beat %v, want %v", r.LastBeat(), past)
	}
	must(t, r.Beat())
	if st, err := os.Stat(filepath.Join(dir, lockName)); err != nil || st.ModTime().Before(before) {
		t.Errorf("beat at %v: %v", st, err)
	}
}

func TestFilesystemWithoutEventsIsRefused(t *testing.T) {
	const shm = "/dev/shm"
	if name, err := sys.FilesystemType(shm); err != nil || name != "tmpfs" {
		t.Skipf("probe: %s is no tmpfs: %s, %v", shm, name, err)
	}
	dir, err := os.MkdirTemp(shm, "lacuna-cache-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	var refused *FilesystemError
	if _, err := OpenRoot(filepath.Join(dir, "a", "b"), RootOptions{}); !errors.As(err, &refused) || refused.Type != "tmpfs" || refused.Hint() == "" {
		t.Fatalf("on tmpfs: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	r := openTestRoot(t, dir)
	data := content(1, 3*block)
	mustFill(t, mustCreate(t, r, metaOf(1, 3*block)), data, ondemand.Range{Len: 3 * block})
}

func TestPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "root")
	r := openTestRoot(t, dir)
	o := mustCreate(t, r, metaOf(1, block))
	for path, want := range map[string]fs.FileMode{
		dir: 0o700, filepath.Join(dir, lockName): 0o600, filepath.Dir(o.DataPath()): 0o700,
		o.DataPath(): 0o644, filepath.Join(filepath.Dir(o.DataPath()), presenceName): 0o600,
	} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, st.Mode().Perm(), err)
		}
	}
}

func TestFindListRemove(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	var ids []ondemand.ObjectID
	for n := range 40 {
		ids = append(ids, mustCreate(t, r, metaOf(n, block)).ID())
	}
	if got, err := r.List(); err != nil || len(got) != len(ids) {
		t.Fatalf("list: %d, %v", len(got), err)
	}
	for _, id := range ids {
		for _, n := range []int{12, 64} {
			if got, err := r.Find(string(id[:n])); err != nil || got != id {
				t.Errorf("find %s: %s, %v", id[:n], got, err)
			}
		}
	}
	if _, err := r.Find(string(ids[0][:1])); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("one digit: %v", err) // idOf(0), idOf(5) and others begin with it
	}
	for _, bad := range []string{"", "..", "zz", "ABCD", string(ids[0]) + "0"} {
		if _, err := r.Find(bad); !errors.Is(err, ErrNoObject) {
			t.Errorf("find %q: %v", bad, err)
		}
	}
	must(t, r.Remove(ids[3]))
	if _, err := r.Object(ids[3]); !errors.Is(err, ErrNoObject) {
		t.Errorf("open a removed object: %v", err)
	}
	if err := r.Remove(ids[3]); !errors.Is(err, ErrNoObject) {
		t.Errorf("remove it again: %v", err)
	}
	if names, err := os.ReadDir(filepath.Join(dir, partialDir)); err != nil || len(names) > 0 {
		t.Errorf("left in partial: %v, %v", names, err)
	}
	if o := mustCreate(t, r, metaOf(3, block)); o.Present() != 0 {
		t.Error("a removed object is present again")
	}
}

func TestCreateRefusesAnotherObjectOfTheSameID(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	m := metaOf(1, 5*block)
	mustCreate(t, r, m)
	other := m
	other.Size++
	if _, err := r.Create(other); !errors.Is(err, ErrMismatch) {
		t.Errorf("another size: %v", err)
	}
	other = m
	other.Source = []byte(`{"kind":"else"}`)
	if _, err := r.Create(other); !errors.Is(err, ErrMismatch) {
		t.Errorf("another source: %v", err)
	}
	m.SHA256 = string(idOf(77))
	mustCreate(t, r, m)
	m.Source = []byte(`{"kind":"else"}`) // the digest says that it is the same
	mustCreate(t, r, m)
	must(t, r.Close())
	r = openTestRoot(t, dir)
	o, err := r.Object(m.ID)
	must(t, err)
	if got := o.Meta(); got.SHA256 != m.SHA256 || string(got.Source) != string(m.Source) {
		t.Errorf("kept %+v", got)
	}
	m.SHA256 = string(idOf(78))
	if _, err := r.Create(m); !errors.Is(err, ErrMismatch) {
		t.Errorf("another digest: %v", err)
	}
	for _, bad := range []Meta{{ID: "x"}, {ID: idOf(2), Size: -1}, {ID: idOf(2), Size: 1 << 62}, {ID: idOf(2), SHA256: "f"}, {ID: idOf(2), Source: []byte("{")}} {
		if _, err := r.Create(bad); !errors.Is(err, ErrBadMeta) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// What one source gave is not mixed with what another gives, unless a digest
// has proved it.
func TestAnotherSourceOfAnUnverifiedObject(t *testing.T) {
	size := int64(3 * block)
	for _, verified := range []bool{false, true} {
		dir := t.TempDir()
		r := openTestRoot(t, dir)
		m := metaOf(1, size)
		m.SHA256 = string(idOf(77))
		o := mustCreate(t, r, m)
		want := int64(block)
		mustFill(t, o, content(1, int(size)), ondemand.Range{Len: block})
		if verified {
			want = size
			mustFill(t, o, content(1, int(size)), ondemand.Range{Len: size})
			must(t, o.SetVerified())
		} else {
			must(t, o.Checkpoint())
		}
		mustCreate(t, r, m)
		if o.Present() != want {
			t.Errorf("verified %v: %d present after the same source came again", verified, o.Present())
		}
		m.Source = []byte(`{"kind":"else"}`)
		if !verified {
			want = 0
		}
		mustCreate(t, r, m)
		if o.Present() != want || o.Meta().Verified != verified {
			t.Errorf("verified %v: %d present, %+v", verified, o.Present(), o.Meta())
		}
		must(t, r.Close())
		r = openTestRoot(t, dir)
		o, err := r.Object(m.ID)
		must(t, err)
		if o.Present() != want || string(o.Meta().Source) != string(m.Source) {
			t.Errorf("verified %v: %d present after reopening, %+v", verified, o.Present(), o.Meta())
		}
	}
}

func TestDamagedDescription(t *testing.T) {
	dir := t.TempDir()
	r := openTestRoot(t, dir)
	m := metaOf(1, 5*block)
	o := mustCreate(t, r, m)
	mustFill(t, o, content(1, 5*block), ondemand.Range{Len: 2 * block})
	must(t, r.Close())
	path := filepath.Join(dir, objectDir(m.ID), metaName)
	for i, damage := range []func() error{
		func() error { return os.WriteFile(path, []byte("{"), 0o600) },
		func() error { return os.Remove(path) },
	} {
		must(t, damage())
		r = openTestRoot(t, dir)
		if _, err := r.Object(m.ID); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d: open: %v", i, err)
		}
		if o := mustCreate(t, r, m); o.Present() != 0 {
			t.Errorf("%d: %d bytes present", i, o.Present())
		}
		must(t, r.Close())
	}
}

func TestLeftoversOfACrashAreRemoved(t *testing.T) {
	dir := t.TempDir()
	must(t, openTestRoot(t, dir).Close())
	must(t, os.MkdirAll(filepath.Join(dir, partialDir, "x", "y"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, partialDir, "x", "y", "data"), nil, 0o600))
	openTestRoot(t, dir)
	if names, err := os.ReadDir(filepath.Join(dir, partialDir)); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// After Close, and after the root's, everything says so and nothing is touched.
func TestClosed(t *testing.T) {
	r := openTestRoot(t, t.TempDir())
	o := mustCreate(t, r, metaOf(1, 4*block))
	mustFill(t, o, content(1, 4*block), ondemand.Range{Len: block})
	must(t, o.Close())
	must(t, o.Close())
	if err := o.Fill(make([]byte, block), block); !errors.Is(err, ErrClosed) {
		t.Errorf("fill: %v", err)
	}
	if err := o.Invalidate(ondemand.Range{Len: block}); !errors.Is(err, ErrClosed) {
		t.Errorf("invalidate: %v", err)
	}
	again := mustCreate(t, r, metaOf(1, 4*block))
	if again == o || again.Present() != block {
		t.Errorf("opened again with %d bytes", again.Present())
	}
	must(t, r.Close())
	must(t, r.Close())
	if _, err := r.Create(metaOf(2, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("create: %v", err)
	}
	if err := r.Remove(idOf(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("remove: %v", err)
	}
}

// Objects of a size that no memory holds cost little.
func TestHugeSparseObject(t *testing.T) {
	dir := t.TempDir()
	const size = 1 << 40
	r := openTestRoot(t, dir)
	o := mustCreate(t, r, metaOf(1, size))
	data := content(1, block)
	for _, off := range []int64{0, size/2 + block, size - block} {
		must(t, o.Fill(data, off))
	}
	must(t, r.Close())
	st, err := os.Stat(filepath.Join(dir, objectDir(o.ID()), presenceName))
	must(t, err)
	r = openTestRoot(t, dir)
	begin := time.Now()
	o = mustCreate(t, r, metaOf(1, size))
	t.Logf("presence file of %d bytes opened in %v", st.Size(), time.Since(begin))
	if o.Present() != 3*block || len(o.Missing(ondemand.Range{Len: size})) != 2 {
		t.Errorf("present %d, missing %v", o.Present(), o.Missing(ondemand.Range{Len: size}))
	}
}
