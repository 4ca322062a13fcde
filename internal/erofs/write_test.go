package erofs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func sortedChildren(in *Inode) []Dirent {
	c := slices.Clone(in.Children)
	slices.SortFunc(c, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
	return c
}

func diff(t testing.TB, got, want map[string]string) {
	t.Helper()
	shown := 0
	for path := range maps.Keys(want) {
		if got[path] != want[path] && shown < 10 {
			t.Errorf("%q\n got %.300s\nwant %.300s", path, got[path], want[path])
			shown++
		}
	}
	for path := range maps.Keys(got) {
		if _, there := want[path]; !there && shown < 10 {
			t.Errorf("%q is there and should not be: %.300s", path, got[path])
			shown++
		}
	}
}

func TestWhatIsWrittenIsReadEqual(t *testing.T) {
	img := sample()
	b := write(t, img)
	got, err := open(t, b).Tree()
	if err != nil {
		t.Fatal(err)
	}
	diff(t, flat(got.Root), flat(img.Root))
	if !slices.Equal(got.Devices, img.Devices) {
		t.Errorf("devices are %v", got.Devices)
	}
	if again := write(t, got); !bytes.Equal(again, b) {
		t.Error("what was read is written differently")
	}
}

func TestOrderOfInputDoesNotMatter(t *testing.T) {
	img := sample()
	want := write(t, img)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		shuffle(img.Root, rng)
		if got := write(t, img); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: other bytes", seed)
		}
	}
}

func shuffle(in *Inode, rng *rand.Rand) {
	rng.Shuffle(len(in.Children), func(i, j int) { in.Children[i], in.Children[j] = in.Children[j], in.Children[i] })
	rng.Shuffle(len(in.Xattrs), func(i, j int) { in.Xattrs[i], in.Xattrs[j] = in.Xattrs[j], in.Xattrs[i] })
	for _, c := range in.Children {
		shuffle(c.Inode, rng)
	}
}

func TestUUIDIsOfTheContent(t *testing.T) {
	one, other := sample(), sample()
	other.Root.Mode ^= 1
	a, b := open(t, write(t, one)).Info(), open(t, write(t, other)).Info()
	if a.UUID == b.UUID || a.UUID == [16]byte{} {
		t.Errorf("UUIDs %x and %x", a.UUID, b.UUID)
	}
}

func TestSameTimesMakeSmallInodes(t *testing.T) {
	img := &Image{Root: manyFiles(1000)}
	large := len(write(t, img))
	img.Root.Sec, img.Root.Nsec = -5, 7
	for _, c := range img.Root.Children {
		c.Inode.Sec, c.Inode.Nsec = -5, 7
	}
	b := write(t, img)
	if len(b) > large-1000*compactSize+2*BlockSize {
		t.Errorf("%d bytes, and %d with different times", len(b), large)
	}
	got, err := open(t, b).Tree()
	if err != nil {
		t.Fatal(err)
	}
	diff(t, flat(got.Root), flat(img.Root))
}

func TestSharedXattrsTakeLessRoom(t *testing.T) {
	img := &Image{Root: manyFiles(1000)}
	for _, c := range img.Root.Children {
		c.Inode.Xattrs = []Xattr{{"security.selinux", strings.Repeat("l", 40)}}
	}
	plain, shared := len(write(t, &Image{Root: manyFiles(1000)})), len(write(t, img))
	// 12 bytes of header and 4 of reference fit into one slot more.
	if shared > plain+1000*slotSize+2*BlockSize {
		t.Errorf("%d bytes, %d without", shared, plain)
	}
}

func TestEmptyImage(t *testing.T) {
	b := write(t, &Image{Root: dir(nil)})
	if len(b) != BlockSize {
		t.Errorf("%d bytes", len(b))
	}
	got, err := open(t, b).Tree()
	if err != nil || len(got.Root.Children) != 0 || len(got.Devices) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDeepTree(t *testing.T) {
	bottom := &Inode{Mode: typeRegular}
	root := dir(map[string]*Inode{"bottom": bottom})
	const depth = 20000
	for range depth {
		root = dir(map[string]*Inode{"d": root})
	}
	b := write(t, &Image{Root: root})
	got, err := open(t, b).Tree()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(write(t, got), b) {
		t.Error("what was read is written differently")
	}
	bottom.Nsec = 1e9
	var where *EntryError
	if err := Write(io.Discard, &Image{Root: root}); !errors.As(err, &where) || where.Path != strings.Repeat("/d", depth)+"/bottom" {
		t.Errorf("error is %.200v", err)
	}
}

func TestLookup(t *testing.T) {
	img := &Image{Root: manyFiles(1500)}
	r := open(t, write(t, img))
	root, err := r.Node(r.Root())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range img.Root.Children {
		e, err := r.Lookup(root, c.Name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := r.Node(e.NID)
		if err != nil || n.Sec != c.Inode.Sec || e.Type != typeRegular {
			t.Fatalf("%s: %+v, %v", c.Name, n, err)
		}
	}
	for _, name := range []string{"", "a", "file number", "file number 1x", "zz", "\xff"} {
		if _, err := r.Lookup(root, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestWhatCannotBeWritten(t *testing.T) {
	regular := func() *Inode { return &Inode{Mode: typeRegular | 0o644} }
	loop := dir(nil)
	loop.Children = []Dirent{{"again", dir(map[string]*Inode{"loop": loop})}}
	twice := dir(nil)
	with := func(change func(in *Inode)) *Inode {
		in := regular()
		change(in)
		return dir(map[string]*Inode{"sub": dir(map[string]*Inode{"f": in})})
	}
	tests := []struct {
		name, says string
		root       *Inode
	}{
		{"no root", "root is not a directory", nil},
		{"root is a file", "root is not a directory", regular()},
		{"empty name", "empty", dir(map[string]*Inode{"": regular()})},
		{"dot", "reserved", dir(map[string]*Inode{".": regular()})},
		{"dot dot", "reserved", dir(map[string]*Inode{"..": regular()})},
		{"slash", "slash", dir(map[string]*Inode{"a/b": regular()})},
		{"NUL", "NUL", dir(map[string]*Inode{"a\x00": regular()})},
		{"long name", "256 bytes", dir(map[string]*Inode{strings.Repeat("n", 256): regular()})},
		{"name twice", "twice", &Inode{Mode: typeDir, Children: []Dirent{{"a", regular()}, {"b", regular()}, {"a", regular()}}}},
		{"no inode", "no inode", dir(map[string]*Inode{"a": nil})},
		{"loop", "two names", loop},
		{"directory twice", "two names", dir(map[string]*Inode{"a": twice, "b": twice})},
		{"no type", "file type", with(func(in *Inode) { in.Mode = 0o644 })},
		{"large mode", "file type", with(func(in *Inode) { in.Mode |= 1 << 16 })},
		{"nanoseconds", "nanoseconds", with(func(in *Inode) { in.Nsec = 1e9 })},
		{"negative size", "size is -1", with(func(in *Inode) { in.Size = -1 })},
		{"no such device", "device 1 of 1", with(func(in *Inode) { in.Size, in.Device = 1, 1 })},
		{"negative device", "device -1 of 1", with(func(in *Inode) { in.Size, in.Device = 1, -1 })},
		{"unaligned", "not a multiple", with(func(in *Inode) { in.Size, in.Offset = 1, 512 })},
		{"negative offset", "not a multiple", with(func(in *Inode) { in.Size, in.Offset = 1, -4096 })},
		{"beyond the device", "pass the end", with(func(in *Inode) { in.Size, in.Offset = 4097, 9*BlockSize })},
		{"far beyond the device", "pass the end", with(func(in *Inode) { in.Size, in.Offset = math.MaxInt64, BlockSize })},
		{"children of a file", "children", with(func(in *Inode) { in.Children = []Dirent{{"a", regular()}} })},
		{"target of a file", "target", with(func(in *Inode) { in.Link = "a" })},
		{"symlink without target", "0 bytes", with(func(in *Inode) { in.Mode = typeSymlink | 0o777 })},
		{"long symlink", "4096 bytes", with(func(in *Inode) { in.Mode, in.Link = typeSymlink|0o777, strings.Repeat("l", 4096) })},
		{"symlink with NUL", "NUL", with(func(in *Inode) { in.Mode, in.Link = typeSymlink|0o777, "a\x00" })},
		{"major", "4096:0", with(func(in *Inode) { in.Mode, in.Rdev = typeChar, Rdev{4096, 0} })},
		{"minor", "0:1048576", with(func(in *Inode) { in.Mode, in.Rdev = typeBlock, Rdev{0, 1 << 20} })},
		{"xattr without prefix", "no place", with(func(in *Inode) { in.Xattrs = []Xattr{{"mine", ""}} })},
		{"xattr that is a prefix", "no place", with(func(in *Inode) { in.Xattrs = []Xattr{{"user.", ""}} })},
		{"other system xattr", "no place", with(func(in *Inode) { in.Xattrs = []Xattr{{"system.nfs4_acl", ""}} })},
		{"ACL with more", "no place", with(func(in *Inode) { in.Xattrs = []Xattr{{"system.posix_acl_access.x", ""}} })},
		{"long xattr name", "no place", with(func(in *Inode) { in.Xattrs = []Xattr{{"user." + strings.Repeat("x", 251), ""}} })},
		{"large xattr", "65536 bytes", with(func(in *Inode) { in.Xattrs = []Xattr{{"user.x", strings.Repeat("x", 65536)}} })},
		{"xattr twice", "twice", with(func(in *Inode) { in.Xattrs = []Xattr{{"user.x", ""}, {"user.y", ""}, {"user.x", ""}} })},
		{"large xattrs", "xattrs need", with(func(in *Inode) {
			for _, c := range "abcde" {
				in.Xattrs = append(in.Xattrs, Xattr{"user." + string(c), strings.Repeat(string(c), 60000)})
			}
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := Write(&out, &Image{Root: tt.root, Devices: []Device{{"d", 10}}})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v", err)
			}
			if out.Len() > 0 {
				t.Errorf("%d bytes are written", out.Len())
			}
			var where *EntryError
			if !errors.As(err, &where) || tt.root != nil && len(tt.root.Children) == 1 && tt.root.Children[0].Name == "sub" && where.Path != "/sub/f" {
				t.Errorf("error does not say where: %v", err)
			}
		})
	}
}

func TestDevicesThatCannotBeWritten(t *testing.T) {
	tests := []struct {
		name, says string
		devices    []Device
	}{
		{"no tag", "tag", []Device{{"", 1}}},
		{"long tag", "tag", []Device{{strings.Repeat("t", 65), 1}}},
		{"NUL", "tag", []Device{{"a\x00", 1}}},
		{"one block too many", "32 bits", []Device{{"a", 1 << 31}, {"b", 1<<31 - 1}}},
		{"overflow", "32 bits", []Device{{"a", math.MaxUint64}, {"b", 2}}},
		{"many", "devices", make([]Device, MaxDevices+1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Write(io.Discard, &Image{Root: dir(nil), Devices: tt.devices})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
	// The image itself takes the one block that is left.
	all := &Image{Root: dir(map[string]*Inode{"end": {Mode: typeRegular, Size: 1, Device: 1, Offset: (1<<31 - 3) * BlockSize}}),
		Devices: []Device{{"a", 1 << 31}, {"b", 1<<31 - 2}}}
	got, err := open(t, write(t, all)).Tree()
	if err != nil {
		t.Fatal(err)
	}
	diff(t, flat(got.Root), flat(all.Root))
}

func TestFailingWriter(t *testing.T) {
	img := sample()
	whole := write(t, img)
	for n := 0; n < len(whole); n += 1 + len(whole)/50 {
		w := &torn{left: n}
		if err := Write(w, img); !errors.Is(err, errTorn) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

var errTorn = errors.New("torn")

// torn fails after some bytes.
type torn struct{ left int }

func (w *torn) Write(p []byte) (int, error) {
	if n := w.left; n < len(p) {
		w.left = 0
		return n, errTorn
	}
	w.left -= len(p)
	return len(p), nil
}
