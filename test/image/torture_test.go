package image

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

func pax(name, data string, records map[string]string) member {
	return member{tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o640, Uid: 4_000_000_000, Gid: 3_000_000_000,
		ModTime: time.Unix(1<<33, 123456789), Format: tar.FormatPAX, PAXRecords: records,
	}, data}
}

func whiteout(name string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: filepath.Dir(name) + "/.wh." + filepath.Base(name)}, ""}
}

func opaque(dir string) member { return whiteout(dir + "/.wh..opq") }

// at changes the time of a member.
func at(m member, sec, nsec int64) member {
	m.ModTime, m.Format = time.Unix(sec, nsec), tar.FormatPAX
	return m
}

const (
	// linux/capability.h, struct vfs_cap_data: version 2, CAP_NET_RAW, effective.
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// linux/posix_acl_xattr.h: version 2; owner rw, user 1000 rw, group r, mask rw, others none.
	accessACL = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\xe8\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	defaultACL = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x04\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
)

// tortureLower is the lowest layer of the torture image; wide is how many
// entries one of its directories has.
func tortureLower(t testing.TB, f format, wide int) []byte {
	long := strings.Repeat("directory/", 40) + strings.Repeat("n", 240)
	gnuLong := file(strings.Repeat("g/", 100)+strings.Repeat("m", 200), "gnu long name")
	gnuLong.Format = tar.FormatGNU
	gnuLink := symlink("gnu-link", strings.Repeat("t/", 400)+"end")
	gnuLink.Format = tar.FormatGNU
	members := []member{
		{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1777, Uid: 1, Gid: 2, ModTime: time.Unix(1, 0)}, ""},
		dir("./etc/"), file("./etc/passwd", string(toctest.Text(1000))), file("etc/empty", ""),
		file("usr/bin/big", string(toctest.Random(1, 3<<20+17))), file("usr/bin/text", string(toctest.Text(2<<20))),
		file("usr/bin/zeros", string(make([]byte, 300<<10))), file("block", string(toctest.Random(2, 4096))),
		file("block-1", string(toctest.Random(3, 4095))), file("block+1", string(toctest.Random(4, 4097))),
		file(long, "long name"), gnuLong, gnuLink,
		symlink("absolute", "/etc/../passwd//"), symlink("pax-link", strings.Repeat("t/", 1000)+"end"), symlink("dangling", "../../.."),
		hardLink("hard", "./etc/passwd"), hardLink("a-link-that-sorts-first", "/usr/bin/big"),
		at(file("before-1970", "x"), -1, 0), at(file("long-before", "x"), -2_000_000_000, 999_999_999),
		at(file("after-2038", "x"), 1<<31, 1), at(file("after-2106", "x"), 1<<32+5, 999_999_999), at(dir("timed"), 1234567890, 987654321),
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: noon}, ""},
		{tar.Header{Typeflag: tar.TypeBlock, Name: "dev/large", Mode: 0o660, Devmajor: 4095, Devminor: 1<<20 - 1, ModTime: noon}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/zero-zero", Mode: 0o600, ModTime: noon}, ""},
		{tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600, ModTime: noon}, ""},
		file("caf\xc3\xa9 \u2028 <&>\"\\\n\t", "odd"),
		file("twice", "first, and longer than the second"), file("twice", "second"),
		file("file-then-dir", "x"), dir("file-then-dir"), file("file-then-dir/in", "in"),
		dir("dir-then-file"), file("dir-then-file/in", "in"), file("dir-then-file", "x"),
		file("no/parent/was/named", "x"),
		pax("pax/attributes", "x", map[string]string{
			"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "\xff\x01 =", "SCHILY.xattr.user.large": strings.Repeat("v", 30<<10),
			"SCHILY.xattr.trusted.t": "t", "SCHILY.xattr.security.capability": capability, "SCHILY.xattr.system.posix_acl_access": accessACL,
		}),
		pax("pax/setuid", "s", nil),
	}
	acl := dir("pax/acl")
	acl.Format, acl.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.system.posix_acl_default": defaultACL}
	members = append(members, acl)
	members[len(members)-2].Mode = 0o6755
	if !f.indexed { // their builder keeps the last of a name only, in the first's place
		members = append(members, file("replaced", "old data of what is replaced"), hardLink("keeps-old", "replaced"),
			file("replaced", "new"), hardLink("keeps-old-too", "keeps-old"))
	}
	for n := range 40 { // which differ in one attribute, and share another
		members = append(members, pax(fmt.Sprintf("pax/shared-%d", n), "x", map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.n": fmt.Sprint(n),
		}))
	}
	for n := range wide {
		members = append(members, file(fmt.Sprintf("wide/%d-%s", n*7919%wide, strings.Repeat("w", n%50)), fmt.Sprint(n)))
	}
	// What the next layer is about.
	for _, d := range []string{"opaque", "gone", "opaque-of-lower", "nested/opaque"} {
		members = append(members, dir(d), file(d+"/old", "old"), dir(d+"/sub"), file(d+"/sub/old", "old"))
	}
	return tarOf(t, append(members, file("gone-file", "x"), file("gone-and-new", "old"), symlink("link-then-dir", "etc"),
		dir("dir-then-link"), file("dir-then-link/in", "x"), file("lower", "of the lower layer"), file("lower2", "two"),
		file("kept-by-link", "the lower data"), dir("described"), file("described/in", "x"))...)
}

// tortureUpper changes it.
func tortureUpper(t testing.TB) []byte {
	described := dir("described")
	described.Mode, described.Uid = 0o2711, 77
	return tarOf(t,
		// Some stand before the marker, and the marker's name sorts before or behind.
		dir("opaque"), file("opaque/!first", "new"), file("opaque/new", "new"), opaque("opaque"), file("opaque/sub/new", "new"),
		opaque("opaque-of-lower"),
		dir("nested/opaque"), file("nested/opaque/.a", "new"), opaque("nested/opaque"), opaque("nested/opaque"),
		whiteout("gone"), whiteout("gone-file"), whiteout("never-was"), whiteout("missing/dir"),
		file("gone-and-new", "new"), whiteout("gone-and-new"),
		dir("link-then-dir"), file("link-then-dir/in", "x"), symlink("dir-then-link", "etc"),
		hardLink("across", "lower"), hardLink("across2/across", "across"), hardLink("lower3", "lower2"), file("lower2", "replaced in this layer"),
		whiteout("keeps-old"), described, hardLink("etc/hard-of-lower", "hard"),
		file("usr/bin/text", "shorter"), whiteout(".wh.plnk"),
	)
}

// tortureThird has hard links that go on, and what GNU tar makes of sparse files
// and attributes of a real directory.
func tortureThird(t testing.TB) []byte {
	return tarOf(t, hardLink("across3", "across"), file("lower", "replaced again"), whiteout("hard"),
		dir("opaque"), file("opaque/third", "3"), hardLink("etc/sub/link", "etc/hard-of-lower"))
}

// tortureBytes has names that are not UTF-8. Tables of contents in JSON cannot tell
// them apart: such a layer is read whole.
func tortureBytes(t testing.TB) []byte {
	return tarOf(t, file("bytes-\xff\xfe-\xe9", "not UTF-8"), file("bytes-\xfe\xff-\xe9", "another"), file("caf\xe9", "hidden"),
		hardLink("hard-\xff", "bytes-\xff\xfe-\xe9"), symlink("sym-\xff", "bytes-\xfe\xff-\xe9"))
}

// sparseTar is what GNU tar makes of sparse files, in one of its formats.
func sparseTar(t testing.TB, flags ...string) []byte {
	t.Helper()
	dir := instance.Dir(t)
	for name, at := range map[string][]int64{"sparse/one": {1 << 20}, "sparse/many": nil, "sparse/hole": {}, "sparse/end": {0, 5000}} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if name == "sparse/many" {
			for n := range int64(100) {
				at = append(at, n*20<<10+n)
			}
		}
		for _, off := range at {
			if _, err := f.WriteAt([]byte(fmt.Sprintf("data at %d", off)), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(3<<20 + 1); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("tar", append(append([]string{"-C", dir, "--sparse", "--mtime=@1700000000.5"}, flags...), "-cf", "-", "sparse")...).Output()
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	return out
}

func TestTortureImageInEveryFormat(t *testing.T) {
	upper, third := tortureUpper(t), tortureThird(t)
	names, hide := tortureBytes(t), tarOf(t, whiteout("caf\xe9"), file("bytes-\xfe\xff-\xe9", "replaced"))
	everyFormat(t, func(f format) [][]byte { return [][]byte{tortureLower(t, f, wideDirectory), upper, third, names, hide} })
}

func TestSparseFilesInEveryFormat(t *testing.T) {
	var tars [][]byte
	for _, form := range []string{"--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"} {
		if form != "--format=gnu" {
			form = "--format=pax " + form
		}
		tar := sparseTar(t, append(strings.Fields(form), "--transform=s,^sparse,"+strings.Trim(form[len(form)-3:], "=")+",S")...)
		tars = append(tars, tar)
	}
	everyFormat(t, inAll(tars), "estargz", "zstdchunked") // whose builder refuses such members
}

func TestManyFilesInEveryFormat(t *testing.T) {
	layers := make([][]member, 3)
	for n := range manyFiles {
		l := n % len(layers)
		name := fmt.Sprintf("d%03d/s%02d/file-%d", n/1000, n/50%20, n)
		layers[l] = append(layers[l], file(name, fmt.Sprintf("%d %s", n, strings.Repeat("x", n%700))))
		if n%100 == 0 && l > 0 {
			layers[l] = append(layers[l], whiteout(fmt.Sprintf("d%03d/s%02d/file-%d", n/1000, n/50%20, n-l)))
		}
	}
	var tars [][]byte
	for _, l := range layers {
		tars = append(tars, tarOf(t, l...))
	}
	everyFormat(t, inAll(tars))
}
