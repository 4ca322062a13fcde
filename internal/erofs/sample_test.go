package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
)

// write is Write into memory.
func write(t testing.TB, img *Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// open is Open of bytes in memory.
func open(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// dir is a directory with those children, by their names.
func dir(children map[string]*Inode) *Inode {
	d := &Inode{Mode: typeDir | 0o755}
	for name, in := range children {
		d.Children = append(d.Children, Dirent{Name: name, Inode: in})
	}
	return d
}

// acl is a POSIX ACL as xattrs have it: version 2, then tag, permissions and
// id of each entry (linux/posix_acl_xattr.h).
func acl(named uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, math.MaxUint32}, {2, 5, named}, {4, 5, math.MaxUint32}, {16, 5, math.MaxUint32}, {32, 4, math.MaxUint32}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// capability is cap_net_raw+ep of version 3, which has the user id of a
// namespace's root (vfs_ns_cap_data of linux/capability.h).
func capability() string {
	b := make([]byte, 24)
	binary.LittleEndian.PutUint32(b, 0x03000001)
	binary.LittleEndian.PutUint32(b[4:], 1<<13)
	binary.LittleEndian.PutUint32(b[20:], 100000)
	return string(b)
}

// sample has one of everything. Its devices are of the sizes that it says.
func sample() *Image {
	file := func(device int, offset, size int64, xattrs ...Xattr) *Inode {
		return &Inode{Mode: typeRegular | 0o644, Device: device, Offset: offset, Size: size, Sec: 1700000000, Nsec: 123456789, Xattrs: xattrs}
	}
	hard := file(1, 0, 3*BlockSize, Xattr{"user.hard", "yes"})
	label := Xattr{"security.selinux", "system_u:object_r:container_file_t:s0"}
	types := dir(map[string]*Inode{
		"fifo":        {Mode: typeFIFO | 0o600, Xattrs: []Xattr{label}},
		"socket":      {Mode: typeSocket | 0o777},
		"char":        {Mode: typeChar | 0o666, Rdev: Rdev{1, 3}},
		"block":       {Mode: typeBlock | 0o660, Rdev: Rdev{MaxMajor, MaxMinor}, UID: 0, GID: 6},
		"minor":       {Mode: typeChar | 0o660, Rdev: Rdev{259, 256}},
		"set":         {Mode: typeRegular | 0o7777},
		"none":        {Mode: typeRegular},
		"link":        {Mode: typeSymlink | 0o777, Link: "../hard"},
		"long link":   {Mode: typeSymlink | 0o777, Link: strings.Repeat("x/", MaxLink/2) + "y"},
		"4000":        {Mode: typeSymlink | 0o777, Link: strings.Repeat("4", 4000)},
		"loose":       {Mode: typeSymlink | 0o777, Link: "no\xffwhere", Xattrs: []Xattr{{"trusted.of", "link"}}},
		"loose large": {Mode: typeSymlink | 0o777, Link: strings.Repeat("z", 900), Xattrs: []Xattr{{"trusted.of", strings.Repeat("v", 5000)}}},
	})
	times := dir(map[string]*Inode{
		"before 1970": {Mode: typeRegular, Sec: -1, Nsec: 999999999},
		"1901":        {Mode: typeRegular, Sec: math.MinInt32 - 1},
		"after 2038":  {Mode: typeRegular, Sec: 1 << 33, Nsec: 1},
		"far":         {Mode: typeRegular, Sec: 1 << 36},
		"zero":        {Mode: typeRegular},
	})
	owners := dir(map[string]*Inode{
		"16 bits": {Mode: typeRegular, UID: 65535, GID: 65535},
		"32 bits": {Mode: typeRegular, UID: 65536, GID: 1<<32 - 2},
	})
	names := dir(map[string]*Inode{
		"\xff\xfe":                   file(0, 0, 1),
		"\x01":                       file(0, 0, 4095),
		"!before the dot":            file(0, BlockSize, 4097),
		".hidden":                    file(0, BlockSize, BlockSize),
		"...":                        file(0, 9*BlockSize, BlockSize),
		strings.Repeat("n", MaxName): dir(nil),
		"a\nb \\ \"":                 dir(nil),
	})
	names.Sec, names.Mode = 77, typeDir|0o1777
	xattrs := dir(map[string]*Inode{
		"acl":        file(0, 0, 5, Xattr{"system.posix_acl_access", acl(1000)}, label),
		"capability": file(0, 0, 6, Xattr{"security.capability", capability()}, label),
		"many":       file(0, 0, 7, manyXattrs(300)...),
		"large":      file(0, 0, 8, Xattr{"user.large", strings.Repeat("L", 60000)}, Xattr{"user.empty", ""}),
		"odd":        file(0, 0, 9, Xattr{"user.\xff \n", "\x00\xff"}, Xattr{"user." + strings.Repeat("n", 250), "v"}),
		"shared 1":   file(0, 0, 10, Xattr{"user.shared", strings.Repeat("s", 3000)}, Xattr{"user.own", "1"}),
		"shared 2":   file(0, 0, 11, Xattr{"user.shared", strings.Repeat("s", 3000)}, Xattr{"user.own", "2"}),
		"shared 3":   file(0, 0, 11, manyXattrs(280)...),
	})
	xattrs.Xattrs = []Xattr{{"system.posix_acl_default", acl(1001)}, {"system.posix_acl_access", acl(1002)}, label}
	deep := dir(nil)
	for range 60 {
		deep = dir(map[string]*Inode{"d": deep, "hard": hard})
	}
	root := dir(map[string]*Inode{
		"types": types, "times": times, "owners": owners, "names": names, "xattrs": xattrs, "deep": deep,
		"hard": hard, "empty": {Mode: typeRegular | 0o600}, "large": file(1, 4*BlockSize, 90*BlockSize+1),
		"some": manyFiles(400), "few": manyFiles(3),
	})
	root.Mode, root.Xattrs, root.Sec = typeDir|0o751, []Xattr{{"trusted.root", "r"}}, 5
	return &Image{Root: root, Devices: []Device{
		{Tag: "sha256:one", Blocks: 10}, {Tag: strings.Repeat("f", MaxTag), Blocks: 100}, {Tag: "empty"},
	}}
}

func manyXattrs(n int) []Xattr {
	var all []Xattr
	for i := range n {
		all = append(all, Xattr{fmt.Sprintf("user.many.%d", n-i), fmt.Sprint("value of ", n-i)})
	}
	return all
}

// manyFiles is a directory with n empty files.
func manyFiles(n int) *Inode {
	d := dir(nil)
	for i := range n {
		d.Children = append(d.Children, Dirent{fmt.Sprintf("file number %d", i), &Inode{Mode: typeRegular | 0o640, Sec: int64(i)}})
	}
	return d
}

// flat is a tree in a form that can be compared: what lies at each path, and
// which paths are one inode.
func flat(root *Inode) map[string]string {
	first := map[*Inode]string{}
	all := map[string]string{}
	var walk func(path string, in *Inode)
	walk = func(path string, in *Inode) {
		if other, seen := first[in]; seen {
			all[path] = "same as " + other
			return
		}
		first[in] = path
		xattrs := map[string]string{}
		for _, x := range in.Xattrs {
			xattrs[x.Name] = x.Value
		}
		all[path] = fmt.Sprintf("%o %d:%d %d.%09d rdev %v data %d@%d+%d link %q xattrs %q children %d",
			in.Mode, in.UID, in.GID, in.Sec, in.Nsec, in.Rdev, in.Size, in.Device, in.Offset, in.Link, xattrs, len(in.Children))
		for _, c := range sortedChildren(in) {
			walk(path+"/"+c.Name, c.Inode)
		}
	}
	walk("", root)
	return all
}
