package soci_test

import (
	"errors"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func TestHeadersTellFilesApart(t *testing.T) {
	plain := toctest.Tar(t, toctest.Torture())
	zt, _ := open(t, build(t, plain, soci.BuildOptions{Stored: true}), len(plain))
	for i := range zt.Files {
		f := zt.Files[i]
		if err := f.CheckHeader(plain[f.Off-soci.HeaderSize : f.Off]); err != nil {
			t.Error(err)
		}
		other := zt.Files[(i+1)%len(zt.Files)]
		long := false
		for _, r := range f.PAX {
			long = long || r.Key == "path"
		}
		if err := f.CheckHeader(plain[other.Off-soci.HeaderSize : other.Off]); !long && !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%q with the data of %q: %v", f.Name, other.Name, err)
		}
		if f.Size > 2*soci.HeaderSize {
			if err := f.CheckHeader(plain[f.Off:][:soci.HeaderSize]); !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("%q with its own data for a header: %v", f.Name, err)
			}
		}
		if err := f.CheckHeader(nil); !errors.Is(err, toc.ErrInvalid) {
			t.Error(err)
		}
	}
}

func FuzzHeader(f *testing.F) {
	plain := toctest.Tar(f, toctest.Torture()[:4])
	f.Add(plain[:512], "./etc/")
	f.Fuzz(func(t *testing.T, block []byte, name string) {
		file := soci.File{Name: name, Type: "reg"}
		if err := file.CheckHeader(block); err != nil && !errors.Is(err, toc.ErrInvalid) {
			t.Error(err)
		}
	})
}
