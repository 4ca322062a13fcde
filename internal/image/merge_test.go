package image

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// layer builds a table of contents of lines like "file a/b", "dir d", "link new old",
// "symlink l target". A file's size is its place in the layer and so tells it from others.
func layer(t *testing.T, lines ...string) Layer {
	t.Helper()
	b := toc.NewBuilder(1 << 20)
	for i, line := range lines {
		words := strings.Fields(line + " -")
		e := toc.Entry{Name: words[1], Mode: 0o644, UID: uint32(i)}
		switch words[0] {
		case "file":
			e.Type = toc.Regular
			e.Size = int64(i + 1)
			e.Chunks = []toc.Chunk{{Len: e.Size, BlobOff: int64(i) * 100, BlobLen: e.Size, Codec: toc.Stored}}
		case "dir":
			e.Type = toc.Directory
		case "link":
			e.Type, e.Link = toc.Hardlink, words[2]
		case "symlink":
			e.Type, e.Link = toc.Symlink, words[2]
		default:
			t.Fatal(line)
		}
		if _, err := b.Add(e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	done, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return Layer{TOC: done, Tag: "tag"}
}

// lines is a filesystem as text: files with device and size.
func lines(root *erofs.Inode) string {
	var all []string
	var walk func(name string, in *erofs.Inode)
	walk = func(name string, in *erofs.Inode) {
		switch in.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			all = append(all, name+"/")
		case syscall.S_IFLNK:
			all = append(all, name+"->"+in.Link)
		default:
			all = append(all, fmt.Sprintf("%s=%d.%d", name, in.Device, in.Size))
		}
		for _, c := range in.Children {
			walk(name+"/"+c.Name, c.Inode)
		}
	}
	for _, c := range root.Children {
		walk(c.Name, c.Inode)
	}
	sort.Strings(all)
	return strings.Join(all, " ")
}

func TestLayersAreMerged(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]string
		want   string
	}{
		"one":                           {[][]string{{"file a", "dir d", "file d/b", "symlink l /x"}}, "a=0.1 d/ d/b=0.3 l->/x"},
		"later wins":                    {[][]string{{"file a"}, {"dir x", "file a"}}, "a=1.2 x/"},
		"whiteout":                      {[][]string{{"file a", "file d/b"}, {"file .wh.a", "file d/.wh.b"}}, "d/"},
		"whiteout after its name":       {[][]string{{"file a"}, {"file a", "file .wh.a"}}, "a=1.1"},
		"whiteout of nothing":           {[][]string{{"file a"}, {"file .wh.b", "file a/.wh.b"}}, "a=0.1"},
		"opaque in the middle":          {[][]string{{"file d/a", "file d/s/b"}, {"file d/!", "file d/.wh..wh..opq", "file d/s/n"}}, "d/ d/!=1.1 d/s/ d/s/n=1.3"},
		"opaque root":                   {[][]string{{"file a", "file d/b"}, {"file .wh..wh..opq", "file c"}}, "c=1.2"},
		"directory described anew":      {[][]string{{"file d/a"}, {"dir d"}}, "d/ d/a=0.1"},
		"directory replaced by file":    {[][]string{{"file d/a"}, {"file d"}}, "d=1.1"},
		"file replaced by directory":    {[][]string{{"file d"}, {"dir d", "file d/a"}}, "d/ d/a=1.2"},
		"inner directory comes first":   {[][]string{{"file d"}, {"dir d/e", "dir d"}}, "d/ d/e/"},
		"link":                          {[][]string{{"file a", "link b a"}}, "a=0.1 b=0.1"},
		"link across layers":            {[][]string{{"file a"}, {"link b a"}}, "a=0.1 b=0.1"},
		"link to what is hidden":        {[][]string{{"file a"}, {"link b a", "file .wh.a"}}, "b=0.1"},
		"link to what is replaced":      {[][]string{{"file a", "dir d", "link b a", "file a"}}, "a=0.4 b=0.1 d/"},
		"link to what is replaced then": {[][]string{{"file a"}, {"link b a", "file a"}}, "a=1.2 b=0.1"},
		"link whose target comes later": {[][]string{{"dir d"}, {"link b a", "file a"}}, "a=0.2 b=0.2 d/"},
		"link to a link of below":       {[][]string{{"file a", "link b a"}, {"link c b", "file .wh.a"}}, "b=0.1 c=0.1"},
		"link replaces its target's":    {[][]string{{"file a"}, {"dir x", "link b a", "file a"}, {"link a b"}}, "a=0.1 b=0.1 x/"},
	} {
		t.Run(name, func(t *testing.T) {
			var in []Layer
			for _, l := range c.layers {
				in = append(in, layer(t, l...))
			}
			got, err := Merge(in)
			if err != nil {
				t.Fatal(err)
			}
			if text := lines(got.Image.Root); text != c.want {
				t.Errorf("%s\nwant %s", text, c.want)
			}
		})
	}
}

func TestLayersThatDoNotFit(t *testing.T) {
	for name, layers := range map[string][][]string{
		"below a symlink":           {{"symlink d /etc"}, {"file d/passwd"}},
		"below a file":              {{"file d"}, {"file d/a"}},
		"directory below a symlink": {{"symlink d /etc"}, {"dir d/a"}},
		"link to nothing":           {{"file a"}, {"link b c"}},
		"link to a directory":       {{"dir d"}, {"link b d"}},
		"link below a symlink":      {{"symlink d /etc", "file a"}, {"link d/a a"}},
		"link through a symlink":    {{"symlink d e", "file e/a"}, {"link b d/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			var in []Layer
			for _, l := range layers {
				in = append(in, layer(t, l...))
			}
			if _, err := Merge(in); !errors.Is(err, ErrMerge) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Who is refused is told which entry of which layer, and what it leads through.
func TestRefusalsNameWhatLeadsAway(t *testing.T) {
	_, err := Merge([]Layer{layer(t, "dir d", "symlink d/e /etc"), layer(t, "file a"), layer(t, "file d/e/f/passwd")})
	want := `layer 3 of 3: "d/e/f/passwd" lies below "d/e", which lower layers have as a symlink to "/etc": layers do not fit together`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Merge([]Layer{layer(t, "file a/b"), layer(t, "file a/b/c")})
	want = `layer 2 of 2: "a/b/c" lies below "a/b", which lower layers have as a file: layers do not fit together`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// Hard links are one inode, with the metadata of the first.
func TestLinksShareTheirInode(t *testing.T) {
	got, err := Merge([]Layer{layer(t, "dir x", "file a"), layer(t, "link b a"), layer(t, "link c b")})
	if err != nil {
		t.Fatal(err)
	}
	inodes := make(map[*erofs.Inode]int)
	for _, c := range got.Image.Root.Children {
		if c.Name != "x" {
			inodes[c.Inode]++
		}
	}
	if len(inodes) != 1 || got.Files != 3 {
		t.Errorf("%d inodes, %d files", len(inodes), got.Files)
	}
}

// A layer without data has no device, and those behind it keep theirs.
func TestLayersWithoutDataHaveNoDevice(t *testing.T) {
	got, err := Merge([]Layer{layer(t, "file a"), layer(t, "dir d"), layer(t, "file b")})
	if err != nil {
		t.Fatal(err)
	}
	if text := lines(got.Image.Root); text != "a=0.1 b=1.1 d/" || fmt.Sprint(got.Layers) != "[0 2]" || len(got.Image.Devices) != 2 {
		t.Errorf("%s, layers %v", text, got.Layers)
	}
}
