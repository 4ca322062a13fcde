package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// sourceTree makes files of all sizes that layouts depend on.
func sourceTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o750))
	must(os.Mkdir(filepath.Join(dir, "many"), 0o700))
	rng := rand.NewChaCha8([32]byte{1})
	for i, size := range []int{0, 1, 100, 4000, 4095, 4096, 4097, 8192, 12000, 200001} {
		b := make([]byte, size)
		_, err := rng.Read(b)
		must(err)
		must(os.WriteFile(filepath.Join(dir, "a", fmt.Sprint("size", i)), b, 0o640))
	}
	for i := range 300 {
		must(os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("name of file number %d", i)), []byte(fmt.Sprint(i)), 0o600))
	}
	must(os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 300000), 0o600))
	must(os.Symlink("../a", filepath.Join(dir, "a", "b", "up")))
	must(os.Symlink(strings.Repeat("long/", 200), filepath.Join(dir, "a", "long")))
	must(os.Link(filepath.Join(dir, "a", "size2"), filepath.Join(dir, "hard")))
	must(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o622))
	return dir
}

func TestReaderReadsWhatMkfsMakes(t *testing.T) {
	tests := []struct {
		name    string
		args    []string
		treeErr error // of Tree, which must be able to say where the data are
	}{
		{"plain", nil, ErrNotSupported},
		{"extended", []string{"-Eforce-inode-extended"}, ErrNotSupported},
		{"one time", []string{"-T77"}, ErrNotSupported},
		{"chunks", []string{"--chunksize=4096"}, ErrNotSupported},
		{"indexed chunks", []string{"--chunksize=65536", "-Eforce-chunk-indexes"}, ErrNotSupported},
		// Chunks of zeros are there once.
		{"device", []string{"--chunksize=4096", "--blobdev=DEVICE"}, ErrNotSupported},
		{"device, large chunks", []string{"--chunksize=1048576", "--blobdev=DEVICE"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source := sourceTree(t)
			out := t.TempDir()
			image, device := filepath.Join(out, "image"), filepath.Join(out, "device")
			args := []string{"-x-1"}
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "DEVICE", device))
			}
			run(t, "mkfs.erofs", append(args, image, source)...)
			b, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			r := open(t, b)
			where := map[int][]byte{Primary: b}
			if len(r.Devices()) > 0 {
				if where[0], err = os.ReadFile(device); err != nil {
					t.Fatal(err)
				}
			}
			compareSource(t, r, r.Root(), source, where)
			if _, err := r.Tree(); !errors.Is(err, tt.treeErr) {
				t.Errorf("tree: %v", err)
			}
		})
	}
}

// compareSource compares a directory of an image with one of this machine.
func compareSource(t *testing.T, r *Reader, nid uint64, path string, where map[int][]byte) {
	t.Helper()
	n, err := r.Node(nid)
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if n.Mode != st.Mode || n.UID != st.Uid || n.GID != st.Gid || uint64(n.Nlink) != st.Nlink {
		t.Errorf("%s: %o %d:%d links %d, want %o %d:%d links %d", path, n.Mode, n.UID, n.GID, n.Nlink, st.Mode, st.Uid, st.Gid, st.Nlink)
	}
	switch n.Mode & typeMask {
	case typeDir:
		entries, err := r.ReadDir(n)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadDir(path)
		if err != nil || len(want) != len(entries) {
			t.Fatalf("%s: %d names, want %d: %v", path, len(entries), len(want), err)
		}
		for i, e := range entries {
			if e.Name != want[i].Name() {
				t.Fatalf("%s: %q, want %q", path, e.Name, want[i].Name())
			}
			if found, err := r.Lookup(n, e.Name); err != nil || found != e {
				t.Errorf("%s: look up %q: %+v, %v", path, e.Name, found, err)
			}
			compareSource(t, r, e.NID, filepath.Join(path, e.Name), where)
		}
	case typeSymlink:
		link, err := r.Link(n)
		if want, _ := os.Readlink(path); err != nil || link != want {
			t.Errorf("%s: link to %q, want %q: %v", path, link, want, err)
		}
	case typeRegular:
		compareData(t, r, n, path, where)
	}
}

func compareData(t *testing.T, r *Reader, n *Node, path string, where map[int][]byte) {
	t.Helper()
	extents, err := r.Extents(n)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	var got []byte
	for _, e := range extents {
		if e.Start != int64(len(got)) {
			t.Fatalf("%s: extent at %d follows %d bytes", path, e.Start, len(got))
		}
		if e.Device == Hole {
			got = append(got, make([]byte, e.Length)...)
			continue
		}
		all := where[e.Device]
		part := all[min(int64(len(all)), e.Offset):min(int64(len(all)), e.Offset+e.Length)]
		// mkfs.erofs may leave the end of the last block out of the device file.
		got = append(append(got, part...), make([]byte, e.Length-int64(len(part)))...)
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: other bytes, %d of %d: %v", path, len(got), len(want), err)
	}
}
