package soci_test

import (
	"archive/tar"
	"errors"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// manyHeaders has files with every form of header that a zTOC can say.
func manyHeaders(t testing.TB) []byte {
	gnu := toctest.Reg(strings.Repeat("g/", 80)+strings.Repeat("n", 150), []byte("GNU's long name"))
	gnu.Format = tar.FormatGNU
	cut := toctest.Reg(strings.Repeat("c", 110), []byte("a name that is cut in its header"))
	cut.Format = tar.FormatPAX
	twice := toctest.Reg("usr/bin/text", []byte("another file of the name"))
	return toctest.Tar(t, append(toctest.Torture(), gnu, cut, twice, toctest.Dir("last"), toctest.Reg("last/same", []byte("GNU's long name"))))
}

func TestHeadersTellFilesApart(t *testing.T) {
	plain := manyHeaders(t)
	zt, _ := open(t, build(t, plain, soci.BuildOptions{Stored: true}), len(plain))
	_, headers, err := zt.Contents()
	if err != nil {
		t.Fatal(err)
	}
	header := func(f *soci.File) []byte {
		off, n, err := zt.Header(f)
		if err != nil {
			t.Fatal(err)
		}
		return plain[off:][:n]
	}
	var files []*soci.File
	for i := range zt.Files {
		f := &zt.Files[i]
		if f.Type != "reg" {
			if err := f.CheckHeader(header(f)); !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("the header of the %s %q is that of a file", f.Type, f.Name)
			}
			continue
		}
		if err := f.CheckHeader(header(f)); err != nil {
			t.Error(err)
		}
		if f.Size > 0 && !strings.Contains(f.Name, ".wh.") {
			files = append(files, f)
		}
	}
	if headers.Len() != len(files) || len(files) < 10 {
		t.Fatalf("headers of %d files of %d", headers.Len(), len(files))
	}
	for n, f := range files {
		right := header(f)
		if int64(len(right)) != headers.Before(n) {
			t.Errorf("%q: a header of %d bytes, not %d", f.Name, headers.Before(n), len(right))
		}
		if err := headers.Check(n, right); err != nil {
			t.Error(err)
		}
		wrong := map[string][]byte{
			"nothing": nil, "a block before": plain[f.Off-int64(len(right))-min(512, f.Off-int64(len(right))):][:len(right)],
			"a block behind": plain[f.Off-int64(len(right))+512:][:len(right)], "a block less": right[512:],
			"a block more": plain[f.Off-int64(len(right)):][:len(right)+512], "zeros": make([]byte, len(right)),
		}
		if n == 0 {
			delete(wrong, "a block before")
		}
		for what, b := range wrong {
			if what == "a block less" && len(b) == 0 {
				continue
			}
			if err := headers.Check(n, b); !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("%q with %s for a header: %v", f.Name, what, err)
			}
		}
		for m, other := range files {
			if err := headers.Check(n, header(other)); m != n && !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("%q with the data of %q: %v", f.Name, other.Name, err)
			}
		}
		for _, size := range []int64{f.Size - 1, f.Size + 1} {
			another := *f
			another.Size = size
			if err := another.CheckHeader(right); !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("%q of %d bytes: %v", f.Name, size, err)
			}
		}
	}
}

// What lies between two files must be of a size that a header may have.
func TestHeadersAreBounded(t *testing.T) {
	s := newSample(t).clone()
	last := &s.ztoc.Files[len(s.ztoc.Files)-1]
	last.Off += 8 << 20
	s.ztoc.Spans.Uncompressed += 8 << 20
	if _, _, err := s.ztoc.Contents(); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("a header of 8 MiB: %v", err)
	}
	if _, _, err := s.ztoc.Header(last); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("a header of 8 MiB: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	plain := toctest.Tar(f, toctest.Torture()[1:3])
	f.Add(plain[512:1024], "./etc/passwd", int64(1000))
	plain = toctest.Tar(f, toctest.Torture()[14:15])
	f.Add(plain[:len(plain)-1024-512], "x", int64(9))
	f.Fuzz(func(t *testing.T, header []byte, name string, size int64) {
		file := soci.File{Name: name, Type: "reg", Off: int64(len(header)), Size: size}
		if err := file.CheckHeader(header); err != nil && !errors.Is(err, toc.ErrInvalid) {
			t.Error(err)
		}
	})
}
