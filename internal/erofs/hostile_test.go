package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// exercise calls everything that a Reader has, and returns the first error.
func exercise(b []byte) error {
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	_, first := r.Tree()
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	for nid := range min(r.size>>slotBits, 300) {
		n, err := r.Node(nid)
		if err != nil {
			continue
		}
		switch n.Mode & typeMask {
		case typeDir:
			_, err = r.ReadDir(n)
			keep(err)
			_, _ = r.Lookup(n, "hard")
		case typeSymlink:
			_, err = r.Link(n)
			keep(err)
		case typeRegular:
			_, err = r.Extents(n)
			keep(err)
		}
		_, err = r.Xattrs(n)
		keep(err)
	}
	return first
}

// seal makes the superblock's checksum right.
func seal(b []byte) {
	if len(b) >= BlockSize {
		le.PutUint32(b[superOffset+4:], superChecksum(b))
	}
}

// FuzzReader: whatever the image, the reader ends, with an error or with a
// tree; where the image can be written again it says the same.
func FuzzReader(f *testing.F) {
	small := &Image{Root: manyFiles(20), Devices: []Device{{"d", 3}}}
	small.Root.Children[3].Inode.Size = 5000
	small.Root.Children[4].Inode.Xattrs = manyXattrs(3)
	for _, img := range []*Image{small, sample(), {Root: dir(nil)}} {
		f.Add(write(f, img), uint32(0), []byte{})
		f.Add(write(f, img), uint32(superOffset+80), []byte{4})
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, patch []byte) {
		if int(at) < len(b) {
			copy(b[at:], patch)
		}
		judge(t, b)
	})
}

// FuzzPatchedImage changes bytes of images that have something of everything: three
// bytes of patches are a place, the fourth is what to put there.
func FuzzPatchedImage(f *testing.F) {
	small := &Image{Root: manyFiles(20), Devices: []Device{{"d", 3}}}
	small.Root.Children[3].Inode.Size = 5000
	small.Root.Children[4].Inode.Xattrs = manyXattrs(3)
	// The large one takes a hundred times as long as the others.
	images := [][]byte{write(f, &Image{Root: dir(nil)}), write(f, sample())}
	for range 14 {
		images = append(images, write(f, small))
	}
	f.Add(uint8(0), []byte{})
	for n := range 3 {
		f.Add(uint8(n), []byte{0, 4, 80, 4, 0, 4, 13, 255})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		b := bytes.Clone(images[int(which)%len(images)])
		for ; len(patches) >= 4; patches = patches[4:] {
			at := int(patches[0])<<16 | int(patches[1])<<8 | int(patches[2])
			b[at%len(b)] = patches[3]
		}
		judge(t, b)
	})
}

// judge wants of an image an error that is of a kind, or a tree; where that can be
// written again it is the same.
func judge(t *testing.T, b []byte) {
	t.Helper()
	seal(b)
	err := exercise(b)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSupported) {
			t.Fatalf("error without a reason: %v", err)
		}
		return
	}
	tree, err := open(t, b).Tree()
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := Write(&again, tree); errors.Is(err, ErrInvalid) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	back, err := open(t, again.Bytes()).Tree()
	if err != nil {
		t.Fatal(err)
	}
	diff(t, flat(back.Root), flat(tree.Root))
}

// TestDamagedImages changes bytes of an image that has one of everything.
func TestDamagedImages(t *testing.T) {
	whole := write(t, sample())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	refused := 0
	for range 200 {
		b := bytes.Clone(whole)
		for range 1 + rng.IntN(3) {
			// Most of the image is names and xattrs of little interest.
			at := rng.IntN(len(b))
			if rng.IntN(2) == 0 {
				at = superOffset + rng.IntN(min(len(b), 3*BlockSize)-superOffset)
			}
			b[at] = byte(rng.Uint32())
		}
		seal(b)
		if err := exercise(b); err != nil {
			refused++
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSupported) {
				t.Fatalf("error without a reason: %v", err)
			}
		}
	}
	t.Logf("%d of 200 refused", refused)
}

func TestOpenRefuses(t *testing.T) {
	whole := write(t, sample())
	change := func(at int, with ...byte) []byte {
		b := bytes.Clone(whole)
		copy(b[at:], with)
		return b
	}
	sealed := func(at int, with ...byte) []byte {
		b := change(superOffset+at, with...)
		seal(b)
		return b
	}
	devices := int(open(t, whole).super.deviceSlot) * deviceSize
	tests := []struct {
		name, says string
		image      []byte
		reason     error
	}{
		{"nothing", "too few", nil, ErrCorrupt},
		{"too short", "too few", whole[:BlockSize-1], ErrCorrupt},
		{"no magic", "no superblock", change(superOffset, 0), ErrCorrupt},
		{"byte of the superblock", "checksum", change(superOffset+60, 0xaa), ErrCorrupt},
		{"byte of the first block", "checksum", change(BlockSize-1, 0xaa), ErrCorrupt},
		{"cut", "blocks in", whole[:len(whole)-BlockSize], ErrCorrupt},
		{"more behind it", "blocks in", append(bytes.Clone(whole), 0), ErrCorrupt},
		{"block size", "2^9", sealed(12, 9), ErrNotSupported},
		{"directory block size", "directory blocks", sealed(90, 1), ErrNotSupported},
		{"unknown feature", "features 0x40", sealed(80, 0x48), ErrNotSupported},
		{"device table elsewhere", "pass the end", sealed(88, 0xff, 0xff), ErrCorrupt},
		{"devices", "device 3", sealed(86, 0xff, 0xff), ErrCorrupt},
		{"tag with more", "tag", func() []byte { b := change(devices+40, 'x'); seal(b); return b }(), ErrCorrupt},
		{"device over the image", "overlaps", func() []byte { b := change(devices+68, 1, 0, 0, 0); seal(b); return b }(), ErrCorrupt},
		{"device too long", "address space", func() []byte {
			b := change(devices+2*deviceSize+64, 0xff, 0xff, 0xff, 0xff)
			seal(b)
			return b
		}(), ErrCorrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(bytes.NewReader(tt.image), int64(len(tt.image)))
			if !errors.Is(err, tt.reason) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// nodeAt is the byte position of the inode of a path.
func nodeAt(t *testing.T, r *Reader, names ...string) int {
	t.Helper()
	nid := r.Root()
	for _, name := range names {
		n, err := r.Node(nid)
		if err != nil {
			t.Fatal(err)
		}
		e, err := r.Lookup(n, name)
		if err != nil {
			t.Fatal(err)
		}
		nid = e.NID
	}
	return int(nid) << slotBits
}

func TestTreeRefuses(t *testing.T) {
	img := &Image{
		Root: dir(map[string]*Inode{
			"a":    dir(map[string]*Inode{"in a": {Mode: typeRegular, Sec: 1}}),
			"b":    dir(map[string]*Inode{"in b": {Mode: typeRegular, Sec: 2}}),
			"file": {Mode: typeRegular, Size: 100, Sec: 3, UID: 70000},
			"link": {Mode: typeSymlink, Link: "target", UID: 70000},
			"x":    {Mode: typeRegular, UID: 70000, Xattrs: []Xattr{{"user.x", "value"}}},
		}),
		Devices: []Device{{"d", 1}},
	}
	whole := write(t, img)
	r := open(t, whole)
	root := nodeAt(t, r)
	a, b := nodeAt(t, r, "a"), nodeAt(t, r, "b")
	file, link, x := nodeAt(t, r, "file"), nodeAt(t, r, "link"), nodeAt(t, r, "x")
	// The first names in the directories, behind compact inodes.
	inRoot := bytes.Index(whole[root:], []byte("...abfilelinkx")) + root
	if !isCompact(whole[a:]) || isCompact(whole[file:]) || inRoot < root {
		t.Fatal("the image is not laid out as the test has it")
	}
	entryA := inRoot - 7*direntSize + 2*direntSize
	tests := []struct {
		name, says string
		at         int
		with       []byte
	}{
		{"directory in itself", "two names", entryA, le.AppendUint64(nil, uint64(root>>slotBits))},
		{"directory twice", "two names", entryA + direntSize, le.AppendUint64(nil, uint64(a>>slotBits))},
		{"inode outside", "end of the image", entryA, le.AppendUint64(nil, 1<<60)},
		{"other type", "type", entryA + 10, []byte{1}},
		{"type that is none", "type 9", entryA + 10, []byte{9}},
		{"name order", "comes after", inRoot + 3, []byte("ba")},
		{"same names", "comes after", inRoot + 3, []byte("aa")},
		{"slash", "slash", inRoot + 4, []byte("/")},
		{"name offset", "directory block", entryA + 8, []byte{0xff, 0xff}},
		{"first name offset", "first name", inRoot - 7*direntSize + 8, []byte{11, 0}},
		{"format", "format", file, []byte{0x20}},
		{"compressed", "data layout 1", file, []byte{3}},
		{"mode", "file type", file + 4, []byte{0, 0}},
		{"no links", "no links", file + 44, []byte{0}},
		{"links", "links", file + 44, []byte{2}},
		{"nanoseconds", "nanoseconds", file + 40, []byte{0xff, 0xff, 0xff, 0xff}},
		{"negative size", "negative", file + 8, bytes.Repeat([]byte{0xff}, 8)},
		{"file size", "pieces", file + 8, []byte{0, 0x20}},
		{"chunk format", "chunk format", file + 16, []byte{0xff, 0xff}},
		{"chunk's block", "pass the end", file + extendedSize + 4, []byte{0xff, 0xff}},
		{"chunk's device", "device 65535", file + extendedSize + 2, []byte{0xff, 0xff}},
		{"chunk of no device", "not on a device", file + extendedSize + 2, []byte{0, 0, 0, 0}},
		{"link size", "4351", link + 8, []byte{0xff, 0x10}},
		{"link of nothing", "size is 0", link + 8, []byte{0}},
		{"NUL in link", "NUL", link + extendedSize + 1, []byte{0}},
		{"directory size", "directory", a + 8, []byte{5}},
		{"xattr count", "bytes", x + 2, []byte{3}},
		{"xattrs beyond", "end of the image", x + 2, []byte{0xff, 0xff}},
		{"xattr prefix", "index 9", x + extendedSize + xattrHeader + 1, []byte{9}},
		{"xattr length", "bytes", x + extendedSize + xattrHeader, []byte{0xff}},
		{"shared xattr", "", x + extendedSize + 4, []byte{1}},
		{"parent", "\"..\"", b + compactSize + direntSize, le.AppendUint64(nil, uint64(a>>slotBits))},
		{"dot", "\".\"", b + compactSize, le.AppendUint64(nil, uint64(a>>slotBits))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image := bytes.Clone(whole)
			copy(image[tt.at:], tt.with)
			seal(image)
			_, err := open(t, image).Tree()
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestHostileImageTakesLittleMemory has inodes each of which says that another
// part of the same few bytes is a large xattr of its own.
func TestHostileImageTakesLittleMemory(t *testing.T) {
	img := &Image{Root: dir(nil)}
	shared := Xattr{"user.large", strings.Repeat("v", 60000)}
	for i := range 2000 {
		in := &Inode{Mode: typeRegular, Xattrs: []Xattr{shared}}
		img.Root.Children = append(img.Root.Children, Dirent{strings.Repeat("n", 1+i/250) + string(rune(0x100+i%250)), in})
	}
	b := write(t, img)
	// Every reference is to another place in the shared area, where a large
	// record begins each time.
	area := b[int(open(t, b).super.xattrBlock)*BlockSize:]
	for at := 0; at < 400; at += 4 {
		copy(area[at:], []byte{1, 1, 0x60, 0xea})
	}
	r := open(t, b)
	root, err := r.Node(r.Root())
	if err != nil {
		t.Fatal(err)
	}
	entries, err := r.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		n, err := r.Node(e.NID)
		if err != nil {
			t.Fatal(err)
		}
		le.PutUint32(b[n.end-4:], uint32(i%100))
	}
	seal(b)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = open(t, b).Tree()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 20*uint64(len(b)) {
		t.Errorf("%d bytes for an image of %d", used, len(b))
	}
	if err == nil {
		t.Error("it is accepted")
	} else if !strings.Contains(err.Error(), "overlaps") {
		t.Error(err)
	}
}

// TestFailingSource fails every read in turn.
func TestFailingSource(t *testing.T) {
	b := write(t, sample())
	for n := 0; ; n++ {
		r, err := Open(&failing{bytes.NewReader(b), n}, int64(len(b)))
		if err == nil {
			_, err = r.Tree()
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errTorn) || n > 1000 {
			t.Fatalf("read %d: %v", n, err)
		}
	}
}

// failing fails all reads after left of them.
type failing struct {
	io.ReaderAt
	left int
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errTorn
	}
	return f.ReaderAt.ReadAt(p, off)
}
