package devnode

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestOpenDirRefusesLargeBlocks(t *testing.T) {
	featurestest.NeedRoot(t)
	if _, err := exec.LookPath("mkfs.xfs"); err != nil {
		t.Fatalf("%v; scripts/deps.sh installs it", err)
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	check(t, os.WriteFile(image, nil, 0o600))
	check(t, os.Truncate(image, 512<<20))
	check(t, os.Mkdir(mount, 0o700))
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("mkfs.xfs", "-q", "-b", "size=16k", image)
	run("mount", "-o", "loop", image, mount)
	t.Cleanup(func() { run("umount", mount) })
	d, err := OpenDir(mount, nil)
	if !errors.Is(err, ErrLargeBlocks) {
		t.Errorf("opened: %v", err)
	}
	if err == nil {
		check(t, d.Close())
	}
}

func TestOpenDirTakesRegularFiles(t *testing.T) {
	dir, _ := hollow(t, map[string]int{"a": 10000, "b": 0, strings.Repeat("n", 254): 1, strings.Repeat("n", 255): 1, "new\nline": 5})
	check(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	check(t, os.Symlink("a", filepath.Join(dir, "link")))
	check(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "z")))
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	var names []string
	for _, o := range d.Objects() {
		names = append(names, o.Leaf())
		if same, err := d.Object(o.ID()); err != nil || same != o || strings.ContainsAny(string(o.ID()), "\n") {
			t.Errorf("%q: %v", o.ID(), err)
		}
	}
	if got := strings.Join(names, " "); got != "a b new\nline "+strings.Repeat("n", 254) {
		t.Errorf("served: %q", got)
	}
	reasons := map[string]string{}
	for _, s := range d.Skipped() {
		reasons[s.Name] = s.Reason
	}
	for name, want := range map[string]string{
		"sub": "a directory", "link": "a symbolic link", "z": "another name of a", strings.Repeat("n", 255): "name longer than 254 bytes",
	} {
		if reasons[name] != want {
			t.Errorf("%s is skipped as %q", name, reasons[name])
		}
	}
	if !d.Objects()[1].Complete() {
		t.Error("an empty file is not complete")
	}
	if _, err := d.Object("bind:0:x"); !errors.Is(err, ErrNoObject) {
		t.Error(err)
	}
	if _, err := OpenDir(filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := OpenDir(filepath.Join(dir, "a"), nil); err == nil {
		t.Error("a file is served as a directory")
	}
}

func TestHoleMapIsThePresence(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	const size = 10*4096 + 100
	makeHole(t, path, size)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	for _, off := range []int64{0, 3 * 4096, 4 * 4096, 10 * 4096} {
		_, err := f.WriteAt(make([]byte, min(4096, size-off)), off)
		check(t, err)
	}
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	o := d.Objects()[0]
	want := map[int64]bool{0: true, 3: true, 4: true, 10: true}
	for block := range int64(11) {
		if got := o.Has(ondemand.Range{Off: block * 4096, Len: 1}); got != want[block] {
			t.Errorf("block %d: %v", block, got)
		}
	}
	if o.Present() != 3*4096+100 {
		t.Errorf("%d bytes present", o.Present())
	}
	// Data that comes later does not count, also for the next incarnation.
	_, err = f.WriteAt(make([]byte, 4096), 4096)
	check(t, err)
	record, err := d.Record().Dup()
	check(t, err)
	makeHole(t, filepath.Join(dir, "late"), 5)
	next, err := OpenDir(dir, record)
	check(t, err)
	defer next.Close()
	if len(next.Objects()) != 1 || len(next.Skipped()) != 1 || next.Skipped()[0].Name != "late" {
		t.Fatalf("%d objects, skipped %v", len(next.Objects()), next.Skipped())
	}
	n := next.Objects()[0]
	for block := range int64(11) {
		if got := n.Has(ondemand.Range{Off: block * 4096, Len: 1}); got != want[block] {
			t.Errorf("inherited block %d: %v", block, got)
		}
	}
	check(t, n.filled(ondemand.Range{Off: 4096, Len: 4096}))
	third, err := d.Record().Dup()
	check(t, err)
	last, err := OpenDir(dir, third)
	check(t, err)
	defer last.Close()
	if !last.Objects()[0].Has(ondemand.Range{Off: 4096, Len: 4096}) {
		t.Error("a later incarnation's presence is lost")
	}
}

func TestHugeSparseFile(t *testing.T) {
	dir := t.TempDir()
	makeHole(t, filepath.Join(dir, "huge"), 1<<40)
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	if o := d.Objects()[0]; o.Present() != 0 || o.Size() != 1<<40 {
		t.Errorf("%d of %d present", o.Present(), o.Size())
	}
}

func TestMalformedRecordIsRefused(t *testing.T) {
	dir, _ := hollow(t, map[string]int{"a": 100000})
	d, err := OpenDir(dir, nil)
	check(t, err)
	defer d.Close()
	good := string(d.record.mem.Bytes)
	for name, bytes := range map[string]string{
		"empty":     "",
		"magic":     "x" + good[1:],
		"version":   good[:8] + "\xff" + good[9:],
		"count":     good[:16] + "\xff\xff" + good[18:],
		"size":      good[:48] + "\xff\xff\xff\xff\xff\xff\xff\xff" + good[56:],
		"offset":    good[:56] + "\xff\xff" + good[58:],
		"truncated": good[:len(good)-1],
	} {
		fd, err := sys.Memfd("spoiled", int64(max(len(bytes), 1)))
		check(t, err)
		m, err := sys.MapShared(fd)
		check(t, err)
		copy(m.Bytes, bytes)
		check(t, m.Close())
		if d, err := OpenDir(dir, fd); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
		if fd.Int() >= 0 {
			t.Errorf("%s: the record is left open", name)
		}
	}
}

func TestBitmapKeepsPresence(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		size := 1 + rnd.Int64N(300*4096)
		m := bitmap{new(sync.Mutex), make([]byte, bitmapLen(size))}
		want := ondemand.NewPresence(size)
		for range rnd.IntN(10) {
			r := ondemand.Range{Off: rnd.Int64N(size), Len: 1 + rnd.Int64N(size)}.Blocks(size)
			want.Set(r)
			m.set(r)
		}
		got := ondemand.NewPresence(size)
		m.load(got)
		all := ondemand.Range{Len: size}
		if !slices.Equal(got.Present(all), want.Present(all)) {
			t.Fatalf("size %d: %v, want %v", size, got.Present(all), want.Present(all))
		}
	}
}
