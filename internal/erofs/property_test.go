package erofs

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// anyImage draws images with everything that the format has room for.
func anyImage(t *rapid.T) *Image {
	img := &Image{}
	for i := range rapid.IntRange(0, 3).Draw(t, "devices") {
		blocks := rapid.Uint64Range(0, 40).Draw(t, "blocks")
		img.Devices = append(img.Devices, Device{Tag: strings.Repeat("t", i+1), Blocks: blocks})
	}
	d := &drawing{t: t, devices: img.Devices, left: rapid.SampledFrom([]int{0, 3, 100, 300}).Draw(t, "inodes")}
	// Some images have one time, so that their inodes are compact.
	if rapid.Bool().Draw(t, "one time") {
		sec := rapid.Int64().Draw(t, "time")
		d.sec = &sec
	}
	img.Root = d.inode(typeDir)
	d.fill(img.Root, 0)
	return img
}

type drawing struct {
	t       *rapid.T
	devices []Device
	left    int
	files   []*Inode
	sec     *int64
}

func (d *drawing) inode(kind uint32) *Inode {
	t := d.t
	small := rapid.Bool().Draw(t, "small ids")
	top := uint32(math.MaxUint32 - 1)
	if small {
		top = 1 << 16
	}
	in := &Inode{
		Mode: kind | rapid.Uint32Range(0, 0o7777).Draw(t, "mode"),
		UID:  rapid.Uint32Range(0, top).Draw(t, "uid"), GID: rapid.Uint32Range(0, top).Draw(t, "gid"),
	}
	if d.sec != nil {
		in.Sec = *d.sec
	} else {
		in.Sec, in.Nsec = rapid.Int64().Draw(t, "sec"), rapid.Uint32Range(0, 999999999).Draw(t, "nsec")
	}
	d.xattrs(in)
	switch kind {
	case typeRegular:
		d.data(in)
	case typeSymlink:
		n := rapid.SampledFrom([]int{1, 30, 3900, 4000, 4032, 4033, 4064, 4065, MaxLink}).Draw(t, "length")
		in.Link = string(bytes.Repeat([]byte{rapid.ByteRange(1, 255).Draw(t, "byte")}, n))
	case typeChar, typeBlock:
		in.Rdev = Rdev{rapid.Uint32Range(0, MaxMajor).Draw(t, "major"), rapid.Uint32Range(0, MaxMinor).Draw(t, "minor")}
	}
	return in
}

func (d *drawing) data(in *Inode) {
	if len(d.devices) == 0 {
		return
	}
	i := rapid.IntRange(0, len(d.devices)-1).Draw(d.t, "device")
	length := int64(d.devices[i].Blocks)
	if length == 0 {
		return
	}
	offset := rapid.Int64Range(0, length-1).Draw(d.t, "offset") * BlockSize
	if in.Size = rapid.Int64Range(0, length*BlockSize-offset).Draw(d.t, "size"); in.Size > 0 {
		in.Device, in.Offset = i, offset
	}
}

func (d *drawing) xattrs(in *Inode) {
	for i := range rapid.IntRange(-4, 3).Draw(d.t, "xattrs") {
		// One value is all the same, and so shared where it is large enough.
		value := strings.Repeat("same", 1<<rapid.IntRange(0, 11).Draw(d.t, "length"))
		if rapid.Bool().Draw(d.t, "own") {
			value = string(rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(d.t, "value"))
		}
		prefix := "trusted."
		if kind := in.Mode & typeMask; kind == typeRegular || kind == typeDir {
			prefix = rapid.SampledFrom([]string{"user.", "trusted.", "security."}).Draw(d.t, "prefix")
		}
		in.Xattrs = append(in.Xattrs, Xattr{fmt.Sprintf("%sx%d", prefix, i), value})
	}
	if in.Mode&typeMask == typeDir && rapid.IntRange(0, 4).Draw(d.t, "acl") == 0 {
		in.Xattrs = append(in.Xattrs, Xattr{"system.posix_acl_default", acl(rapid.Uint32Range(0, 3).Draw(d.t, "user"))})
	}
}

func (d *drawing) fill(dir *Inode, depth int) {
	names := map[string]bool{}
	// One in so many ends the directory.
	ends := make([]int, rapid.SampledFrom([]int{2, 30, 300}).Draw(d.t, "many"))
	for i := range ends {
		ends[i] = i
	}
	for d.left > 0 && rapid.SampledFrom(ends).Draw(d.t, "end") > 0 {
		d.left--
		length := rapid.SampledFrom([]int{1, 2, 8, 200, MaxName}).Draw(d.t, "length")
		b := rapid.SliceOfN(rapid.Byte(), length, length).Draw(d.t, "name")
		name := string(bytes.ReplaceAll(bytes.ReplaceAll(b, []byte{0}, []byte("!")), []byte("/"), []byte("\xff")))
		if names[name] || checkName(name) != "" {
			continue
		}
		names[name] = true
		kind := rapid.SampledFrom([]uint32{typeRegular, typeRegular, typeDir, typeDir, typeSymlink, typeChar, typeBlock, typeFIFO, typeSocket}).Draw(d.t, "type")
		if len(d.files) > 0 && rapid.IntRange(0, 5).Draw(d.t, "hard") == 0 {
			dir.Children = append(dir.Children, Dirent{name, rapid.SampledFrom(d.files).Draw(d.t, "link")})
			continue
		}
		in := d.inode(kind)
		dir.Children = append(dir.Children, Dirent{name, in})
		if kind != typeDir {
			d.files = append(d.files, in)
		} else if depth < 20 {
			d.fill(in, depth+1)
		}
	}
}

func TestAnyImageIsReadAsWritten(t *testing.T) {
	largest := 0
	rapid.Check(t, func(t *rapid.T) {
		img := anyImage(t)
		var b bytes.Buffer
		if err := Write(&b, img); err != nil {
			t.Fatal(err)
		}
		r, err := Open(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if want := flat(img.Root); !equal(flat(got.Root), want) {
			t.Fatalf("got %q, want %q", flat(got.Root), want)
		}
		var again bytes.Buffer
		if err := Write(&again, got); err != nil || !bytes.Equal(again.Bytes(), b.Bytes()) {
			t.Fatalf("written again it is different: %v", err)
		}
		largest = max(largest, int(r.Info().Inodes))
	})
	if largest < 30 {
		t.Errorf("the largest image has %d inodes: too few to try much", largest)
	}
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// TestKernelMountsAnyImage mounts some of the images that the property is
// checked with, and lets fsck.erofs read them.
func TestKernelMountsAnyImage(t *testing.T) {
	generator := rapid.Custom(anyImage)
	for seed := range 40 {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			img := generator.Example(seed)
			image, devices := files(t, img, t.TempDir())
			run(t, "fsck.erofs", withDevices(devices, image)...)
			compareMount(t, img, mountImage(t, image, devices), 1)
		})
	}
}
