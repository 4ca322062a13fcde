// Package toctest makes layers for the tests of toc and its readers, and compares
// tables of contents with what archive/tar reads in the same layer.
package toctest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// File is a tar entry with its data; the header's Size is that of the data.
type File struct {
	tar.Header
	Data []byte
}

// Tar writes the files as an uncompressed layer.
func Tar(t testing.TB, files []File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.Data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Random is n bytes that do not compress, the same ones for the same seed.
func Random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Text is n bytes that compress.
func Text(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of a file that compresses well\n", i)
	}
	return b.Bytes()[:n]
}

// Reg and Dir are entries with usual metadata.
func Reg(name string, data []byte) File {
	return File{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}, data}
}

// Dir is a directory.
func Dir(name string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(1700000000, 0)}}
}

// Torture is a layer with everything that a layer may have, whose names are in
// order and occur once.
func Torture() []File {
	long := strings.Repeat("d/", 60) + strings.Repeat("n", 200)
	files := []File{
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1777, Uid: 1, Gid: 2, ModTime: time.Unix(1, 0)}},
		Dir("./etc/"), Reg("./etc/passwd", Text(1000)), Reg("etc/empty", nil),
		Reg("usr/bin/big", Random(1, 600_017)), Reg("usr/bin/text", Text(1<<20)),
		Reg("usr/bin/zeros", make([]byte, 300<<10)),
		Reg("usr/bin/holes", append(append(Text(70000), make([]byte, 200<<10)...), Text(90001)...)),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: "/etc/../passwd//", Mode: 0o777, ModTime: time.Unix(-1, 0), Format: tar.FormatPAX}},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "./etc/passwd"}},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "lower", Linkname: "not/in/this/layer"}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o660, Devmajor: 8, Devminor: 1<<20 - 1}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o600}},
		Reg(long, []byte("long name")),
		Reg("caf\xc3\xa9 \u2028 <&>\"\\", []byte("utf-8")),
		Reg("gone/.wh.file", nil), Reg("gone/.wh..wh..opq", nil), Reg(".wh..wh.plnk/x", nil), Reg(".wh.-x", nil),
		Reg(".wh..wh.aufs", nil),
	}
	pax := func(name string, mode, uid int64, data string, records map[string]string) File {
		return File{tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: int(uid), Gid: int(uid),
			ModTime: time.Unix(1<<33, 123456789), Format: tar.FormatPAX, PAXRecords: records,
		}, []byte(data)}
	}
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	return append(files,
		pax("pax/suid", 0o4755, 0xFFFFFFFE, "s", nil),
		pax("pax/xattrs", 0o644, 0, "x", map[string]string{
			"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "\xff\x01 =", "SCHILY.xattr.user.empty": " ",
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.system.posix_acl_access": acl,
			"SCHILY.xattr.user.large": strings.Repeat("v", 60<<10),
		}))
}

// Blob is a layer in memory that counts its requests and open readers.
type Blob struct {
	Bytes    []byte
	Requests atomic.Int64
	Sent     atomic.Int64
	Open     atomic.Int64
}

// Size is the number of bytes.
func (b *Blob) Size() int64 { return int64(len(b.Bytes)) }

// ReadRange is one request.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off+n > b.Size() {
		return nil, fmt.Errorf("range [%d,+%d) of %d", off, n, b.Size())
	}
	b.Requests.Add(1)
	b.Sent.Add(n)
	b.Open.Add(1)
	return &reader{Reader: bytes.NewReader(b.Bytes[off : off+n]), b: b, ctx: ctx}, nil
}

type reader struct {
	io.Reader
	b   *Blob
	ctx context.Context
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func (r *reader) Close() error {
	r.b.Open.Add(-1)
	return nil
}
