package erofs

import (
	"bytes"
	"io"
	"io/fs"
	"maps"
	"testing"

	goerofs "github.com/erofs/go-erofs"
)

// TestOtherReaderReadsTheSame compares with the reader of
// github.com/erofs/go-erofs, where it can read: it goes by fs.ValidPath, so that
// names which are not UTF-8 are beyond it; 0.3.1 writes a dot behind the names
// of the two POSIX ACLs, and looks for the data of flat-plain files in the image
// only, never in a device, so that data are not compared.
func TestOtherReaderReadsTheSame(t *testing.T) {
	img := sample()
	devices := make([]io.ReaderAt, len(img.Devices))
	other, err := goerofs.Open(bytes.NewReader(write(t, img)), goerofs.WithExtraDevices(devices...))
	if err != nil {
		t.Fatal(err)
	}
	o := otherReader{t: t, root: other, links: links(img.Root)}
	o.compare(".", img.Root)
	if o.read < 500 {
		t.Errorf("%d entries compared", o.read)
	}
}

type otherReader struct {
	t     *testing.T
	root  fs.FS
	links map[*Inode]uint64
	read  int
}

func (o *otherReader) compare(path string, in *Inode) {
	t := o.t
	t.Helper()
	if !fs.ValidPath(path) {
		return
	}
	info, err := fs.Lstat(o.root, path)
	if err != nil {
		t.Errorf("%q: %v", path, err)
		return
	}
	o.read++
	st, ok := info.Sys().(*goerofs.Stat)
	if !ok {
		t.Fatalf("%q: %T", path, info.Sys())
	}
	if st.UID != in.UID || st.GID != in.GID || int64(st.Mtime) != in.Sec || st.MtimeNs != in.Nsec || uint64(st.Nlink) != o.links[in] {
		t.Errorf("%q: %+v", path, st)
	}
	if in.Mode&typeMask == typeRegular && info.Size() != in.Size {
		t.Errorf("%q: size %d, want %d", path, info.Size(), in.Size)
	}
	if kindOf(info.Mode()) != in.Mode&typeMask || uint32(info.Mode().Perm()) != in.Mode&0o777 {
		t.Errorf("%q: mode %v, want %o", path, info.Mode(), in.Mode)
	}
	want := map[string]string{}
	for _, x := range in.Xattrs {
		name := x.Name
		if index, suffix, _ := splitXattr(name); index != 0 && suffix == "" {
			name += "."
		}
		want[name] = x.Value
	}
	if !maps.Equal(st.Xattrs, want) {
		t.Errorf("%q: xattrs %.300q, want %.300q", path, st.Xattrs, want)
	}
	o.content(path, in)
}

func (o *otherReader) content(path string, in *Inode) {
	t := o.t
	t.Helper()
	switch in.Mode & typeMask {
	case typeSymlink:
		if link, err := fs.ReadLink(o.root, path); err != nil || link != in.Link {
			t.Errorf("%q: link to %.80q: %v", path, link, err)
		}
	case typeDir:
		entries, err := fs.ReadDir(o.root, path)
		if err != nil || len(entries) != len(in.Children) {
			t.Errorf("%q: %d names, want %d: %v", path, len(entries), len(in.Children), err)
		}
		for _, c := range in.Children {
			child := c.Name
			if path != "." {
				child = path + "/" + c.Name
			}
			o.compare(child, c.Inode)
		}
	}
}
