package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// damagedCase is something that happened to the files of an object while it
// was closed.
type damagedCase struct {
	name   string
	damage func(t *testing.T, dir string) // dir is the object's
	reset  string                         // in why nothing is present; empty: not all is missing
	holes  int64                          // bytes that became missing
}

func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(path, change(b), 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var damagedCases = []damagedCase{
	{"untouched", func(*testing.T, string) {}, "", 0},
	{"presence gone", func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, presenceName)))
	}, "presence file was gone", 0},
	{"data gone", func(t *testing.T, dir string) {
		must(t, os.Remove(filepath.Join(dir, dataName)))
	}, "data file was gone", 0},
	{"data another file of the same size", func(t *testing.T, dir string) {
		data := filepath.Join(dir, dataName)
		must(t, os.Rename(data, data+"x"))
		b, err := os.ReadFile(data + "x")
		must(t, err)
		must(t, os.WriteFile(data, b, 0o644))
		must(t, os.Remove(data+"x"))
	}, "not the one", 0},
	{"data cut", func(t *testing.T, dir string) {
		must(t, os.Truncate(filepath.Join(dir, dataName), 5*block))
	}, "has 20480 bytes", 0},
	{"data longer", func(t *testing.T, dir string) {
		must(t, os.Truncate(filepath.Join(dir, dataName), 500*block))
	}, "has 2048000 bytes", 0},
	{"data wiped", func(t *testing.T, dir string) {
		data := filepath.Join(dir, dataName)
		st, err := os.Stat(data)
		must(t, err)
		must(t, os.Truncate(data, 0))
		must(t, os.Truncate(data, st.Size()))
	}, "", 20*block + 11},
	{"hole in a present range", func(t *testing.T, dir string) {
		f, err := os.OpenFile(filepath.Join(dir, dataName), os.O_RDWR, 0)
		must(t, err)
		must(t, sys.PunchHole(int(f.Fd()), 3*block, 2*block))
		must(t, f.Close())
	}, "", 2 * block},
	{"presence empty", func(t *testing.T, dir string) {
		must(t, os.Truncate(filepath.Join(dir, presenceName), 0))
	}, "cut off", 0},
	{"presence garbage", func(t *testing.T, dir string) {
		rewrite(t, filepath.Join(dir, presenceName), func(b []byte) []byte { return content(99, len(b)) })
	}, "magic", 0},
	{"a bit of the header", func(t *testing.T, dir string) {
		rewrite(t, filepath.Join(dir, presenceName), func(b []byte) []byte { b[60] ^= 1; return b })
	}, "checksum", 0},
}

func TestDamagedFilesMakeBlocksMissing(t *testing.T) {
	for i, c := range damagedCases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			size := int64(100*block + 11)
			data := content(uint64(i), int(size))
			filled := []ondemand.Range{{Off: 0, Len: 10 * block}, {Off: 90 * block, Len: 10*block + 11}}
			r := openTestRoot(t, dir)
			o := mustCreate(t, r, metaOf(i, size))
			for _, f := range filled {
				mustFill(t, o, data, f)
			}
			must(t, r.Close())
			c.damage(t, filepath.Join(dir, objectDir(o.ID())))

			c.lookReadOnly(t, dir, o.ID())
			for again := range 2 {
				r = openTestRoot(t, dir)
				o = mustCreate(t, r, metaOf(i, size))
				c.look(t, o, again > 0)
				verifyPresent(t, o, data)
				if o.Size() != size || o.Complete() {
					t.Errorf("size %d, complete %v", o.Size(), o.Complete())
				}
				if st, err := o.File().Stat(); err != nil || st.Size() != DataSize(size) {
					t.Errorf("the data file has %d bytes: %v", st.Size(), err)
				}
				must(t, r.Close())
			}
			r = openTestRoot(t, dir)
			o = mustCreate(t, r, metaOf(i, size))
			for _, m := range o.Missing(ondemand.Range{Len: size}) {
				mustFill(t, o, data, m)
			}
			verifyPresent(t, o, data)
			if !o.Complete() {
				t.Error("not complete at last")
			}
		})
	}
}

const filledBytes = 20*block + 11

// look checks what opening found; the second time all has been put right.
func (c damagedCase) look(t *testing.T, o *Object, again bool) {
	t.Helper()
	found, want := o.Recovered(), int64(filledBytes)
	lost := int64(0)
	for _, h := range found.Holes {
		lost += h.Len
	}
	switch {
	case again && !found.Clean():
		t.Errorf("found once more: %+v", found)
	case !again && (c.reset == "") != (found.Reset == ""), !again && !strings.Contains(found.Reset, c.reset):
		t.Errorf("reset %q, want %q", found.Reset, c.reset)
	case !again && lost != c.holes:
		t.Errorf("holes %v, want %d bytes", found.Holes, c.holes)
	}
	if c.reset != "" {
		want = 0
	}
	if want -= c.holes; o.Present() != want {
		t.Errorf("present %d, want %d", o.Present(), want)
	}
}

// lookReadOnly checks that inspecting a damaged object tells of it and changes nothing.
func (c damagedCase) lookReadOnly(t *testing.T, dir string, id ondemand.ObjectID) {
	t.Helper()
	r, err := OpenRootReadOnly(dir)
	must(t, err)
	defer func() { must(t, r.Close()) }()
	o, err := r.Object(id)
	if c.name == "data gone" {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("open read-only: %v", err)
		}
		return
	}
	must(t, err)
	c.look(t, o, false)
	rep, err := o.Check(context.Background(), CheckOptions{})
	must(t, err)
	if rep.Corrupt() != (c.reset != "" || c.holes > 0) {
		t.Errorf("corrupt: %v; %+v", rep.Corrupt(), rep)
	}
	if _, err := o.Check(context.Background(), CheckOptions{Repair: true}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("repair of a read-only root: %v", err)
	}
	if err := o.Fill(make([]byte, block), 20*block); !errors.Is(err, ErrReadOnly) {
		t.Errorf("fill of a read-only root: %v", err)
	}
}

// The presence file of one object beside the data of another claims nothing.
func TestSwappedPresenceFilesClaimNothing(t *testing.T) {
	dir := t.TempDir()
	size := int64(30 * block)
	r := openTestRoot(t, dir)
	var paths []string
	for n := range 2 {
		o := mustCreate(t, r, metaOf(n, size))
		mustFill(t, o, content(uint64(n), int(size)), ondemand.Range{Off: int64(n) * block, Len: 9 * block})
		paths = append(paths, filepath.Join(dir, objectDir(o.ID()), presenceName))
	}
	must(t, r.Close())
	must(t, os.Rename(paths[0], paths[0]+"x"))
	must(t, os.Rename(paths[1], paths[0]))
	must(t, os.Rename(paths[0]+"x", paths[1]))
	r = openTestRoot(t, dir)
	for n := range 2 {
		o := mustCreate(t, r, metaOf(n, size))
		if o.Present() != 0 || !strings.Contains(o.Recovered().Reset, "another object") {
			t.Errorf("present %d: %+v", o.Present(), o.Recovered())
		}
	}
}

// smallDisk mounts an empty ext4 of a few MiB until the end of the test.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	return loopMount(t, size, "mkfs.ext4", "-q", "-m", "0")
}

// loopMount mounts an empty filesystem until the end of the test.
func loopMount(t *testing.T, size int64, mkfs ...string) string {
	t.Helper()
	featurestest.NeedRoot(t)
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Fatalf("%v; scripts/deps.sh installs it", err)
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	must(t, os.Mkdir(mount, 0o700))
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run(append(mkfs, image)...)
	run("mount", "-o", "loop", image, mount)
	t.Cleanup(func() { run("umount", mount) })
	return mount
}

func TestLargeBlocksAreRefused(t *testing.T) {
	mount := loopMount(t, 512<<20, "mkfs.xfs", "-q", "-b", "size=16k")
	_, err := OpenRoot(filepath.Join(mount, "root"), RootOptions{})
	var refused *FilesystemError
	if !errors.As(err, &refused) || refused.BlockSize != 16384 || !strings.Contains(err.Error(), "16384") {
		t.Errorf("%v", err)
	}
	if names, err := os.ReadDir(mount); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestDiskFull(t *testing.T) {
	mount := smallDisk(t, 16<<20)
	size := int64(64 << 20)
	data := content(3, int(size))
	root := filepath.Join(mount, "root")
	r := openTestRoot(t, root)
	o := mustCreate(t, r, metaOf(3, size))
	ballast := filepath.Join(mount, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 4<<20), 0o600))

	const piece = 128 << 10
	off, err := int64(0), error(nil)
	for ; off < size && err == nil; off += piece {
		err = o.Fill(data[off:off+piece], off)
	}
	off -= piece
	if !errors.Is(err, syscall.ENOSPC) || ondemand.Errno(err) != syscall.ENOSPC {
		t.Fatalf("fill of a full disk at %d: %v", off, err)
	}
	if got := o.Missing(ondemand.Range{Off: off, Len: piece}); len(got) != 1 || got[0].Len != piece {
		t.Errorf("missing after the failed fill: %v", got)
	}
	verifyPresent(t, o, data)
	// What a checkpoint on a full disk answers is the disk's affair; what is
	// claimed afterwards is right.
	if err := o.Checkpoint(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("checkpoint: %v", err)
	}
	if other, err := r.Create(metaOf(4, size)); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("create on a full disk: %v", err)
	} else if err == nil && other.Present() != 0 {
		t.Errorf("a new object has %d bytes", other.Present())
	}
	must(t, os.Remove(ballast))
	mustFill(t, o, data, ondemand.Range{Off: off, Len: piece})
	must(t, o.Checkpoint())
	must(t, r.Close())
	r = openTestRoot(t, root)
	o = mustCreate(t, r, metaOf(3, size))
	if o.Present() < off || !o.Has(ondemand.Range{Off: off, Len: piece}) {
		t.Errorf("present after reopening: %d of %d", o.Present(), off)
	}
	verifyPresent(t, o, data)
	must(t, r.Close())
}

// sourceOf is a source of data for Check.
func sourceOf(data []byte) func(context.Context, int64, int64) (io.ReadCloser, error) {
	return func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(string(data[off : off+n]))), nil
	}
}
