package image

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/toc"
)

// raw is an entry as a layer has it.
type raw struct {
	kind       toc.Type
	name, link string
}

func (r raw) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", r.kind, r.name, r.link))
}

// thing is an inode of the model: which entry made it.
type thing struct{ what string }

// model is a tree as a program unpacks it that knows one path after the other.
type model map[string]*thing // "" is not in it

const aDir = "dir "

func (m model) isDir(name string) bool {
	t := m[name]
	return name == "" || t != nil && strings.HasPrefix(t.what, aDir)
}

func (m model) remove(name string, itself bool) {
	maps.DeleteFunc(m, func(n string, _ *thing) bool {
		return n == name && itself || strings.HasPrefix(n, name+"/") || name == "" && !itself
	})
}

func dirOf(name string) string {
	dir, _ := split(name)
	return dir
}

var errModel = errors.New("cannot be unpacked")

// hide applies what is about lower layers.
func (m model) hide(r raw) {
	dir, last := split(r.name)
	hidden, ok := strings.CutPrefix(last, ".wh.")
	switch {
	case last == ".wh..wh..opq" && m.isDir(dir):
		m.remove(dir, false)
	case ok && last != ".wh..wh..opq":
		m.remove(strings.TrimPrefix(dir+"/"+hidden, "/"), true)
	}
}

// add unpacks an entry.
func (m model) add(r raw, id string) error {
	if _, last := split(r.name); strings.HasPrefix(last, ".wh.") {
		for dir := dirOf(r.name); dir != ""; dir = dirOf(dir) {
			if m[dir] != nil && !m.isDir(dir) {
				return errModel
			}
		}
		return nil
	}
	for dir := dirOf(r.name); dir != ""; dir = dirOf(dir) {
		if m[dir] == nil {
			m[dir] = &thing{aDir + "made up"}
		} else if !m.isDir(dir) {
			return errModel
		}
	}
	made := &thing{id}
	switch r.kind {
	case toc.Directory:
		made.what = aDir + id
		if m.isDir(r.name) {
			m[r.name] = made
			return nil
		}
	case toc.Hardlink:
		if made = m[r.link]; made == nil || m.isDir(r.link) {
			return errModel
		}
		if r.link == r.name {
			return nil
		}
		for dir := dirOf(r.link); dir != ""; dir = dirOf(dir) {
			if dir == r.name {
				return errModel // it would be removed before it is linked
			}
		}
	}
	m.remove(r.name, true)
	m[r.name] = made
	return nil
}

// unpack is the tree of the layers, the lowest first.
func unpack(layers [][]raw) (model, error) {
	m := model{}
	for l, entries := range layers {
		for _, r := range entries {
			m.hide(r)
		}
		for i, r := range entries {
			if err := m.add(r, fmt.Sprintf("%d.%d", l, i)); err != nil {
				return nil, fmt.Errorf("layer %d: %v: %w", l, r, err)
			}
		}
	}
	return m, nil
}

// text is the tree with inodes that several names have as "first name".
func (m model) text() string {
	var lines []string
	first := make(map[*thing]string)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		t := m[name]
		if first[t] == "" {
			first[t] = name
		}
		lines = append(lines, fmt.Sprintf("%s=%s=%s", name, t.what, first[t]))
	}
	return strings.Join(lines, "\n")
}

// merged is the tree that the product makes of the layers.
func merged(layers [][]raw) (model, error) {
	var in []Layer
	for l, entries := range layers {
		b := toc.NewBuilder(1 << 30)
		for i, r := range entries {
			// The owner tells what made an inode, and so do the place and the size.
			e := toc.Entry{Name: r.name, Type: r.kind, Link: r.link, UID: uint32(l + 1), GID: uint32(i)}
			if r.kind == toc.Regular {
				e.Size = int64(i + 1)
			}
			if _, err := b.Add(e); err != nil {
				return nil, err
			}
		}
		t, err := b.Finish()
		if err != nil {
			return nil, err
		}
		if err := t.Validate(); err != nil {
			return nil, fmt.Errorf("what a Builder has finished: %v", err) //nolint:errorlint // it is none of the layers' errors
		}
		in = append(in, Layer{TOC: t, Tag: "tag"})
	}
	merged, err := Merge(in)
	if err != nil {
		return nil, err
	}
	m := model{}
	seen := make(map[*erofs.Inode]*thing)
	var walk func(name string, in *erofs.Inode)
	walk = func(name string, in *erofs.Inode) {
		t := seen[in]
		if t == nil {
			t = &thing{fmt.Sprintf("%d.%d", int(in.UID)-1, in.GID)}
			if in.UID == 0 {
				t.what = "made up"
			}
			if in.Mode&syscall.S_IFMT == syscall.S_IFDIR {
				t.what = aDir + t.what
			}
			seen[in] = t
		}
		if name != "" {
			m[name] = t
		}
		for _, c := range in.Children {
			walk(strings.TrimPrefix(name+"/"+c.Name, "/"), c.Inode)
		}
	}
	walk("", merged.Image.Root)
	return m, nil
}

func drawLayers(t *rapid.T) [][]raw {
	names := []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b"}
	name := rapid.SampledFrom(names)
	entry := rapid.Custom(func(t *rapid.T) raw {
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0, 1, 2:
			return raw{toc.Regular, name.Draw(t, "name"), ""}
		case 3:
			return raw{toc.Symlink, name.Draw(t, "name"), "target"}
		case 4, 5:
			return raw{toc.Directory, name.Draw(t, "name"), ""}
		case 6:
			dir, last := split(name.Draw(t, "name"))
			return raw{toc.Regular, strings.TrimPrefix(dir+"/.wh."+last, "/"), ""}
		case 7:
			return raw{toc.Regular, rapid.SampledFrom([]string{"", "d/", "d/e/"}).Draw(t, "dir") + ".wh..wh..opq", ""}
		}
		return raw{toc.Hardlink, name.Draw(t, "name"), name.Draw(t, "target")}
	})
	return rapid.SliceOfN(rapid.SliceOfN(entry, 0, 8), 1, 4).Draw(t, "layers")
}

// Layers are merged as a program unpacks them that takes one entry after the other,
// but for whiteouts, which may stand anywhere.
func TestMergeIsLikeUnpacking(t *testing.T) {
	refused, equal := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		got, err := merged(layers)
		if err != nil && !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, ErrMerge) {
			t.Fatal(err)
		}
		want, cannot := unpack(layers)
		switch {
		case cannot != nil:
		case err != nil:
			// Nobody writes such layers, and whoever mounts one is told.
			if !strings.Contains(err.Error(), "hard link") && !strings.Contains(err.Error(), "links to itself") {
				t.Fatalf("%v refused: %v", layers, err)
			}
			refused++
		case got.text() != want.text():
			t.Fatalf("%v\nmerged\n%s\nunpacked\n%s", layers, got.text(), want.text())
		default:
			equal++
		}
	})
	t.Logf("%d equal, %d refused", equal, refused)
}

// Whiteouts and opaque markers mean the same wherever they stand in their layer.
func TestWhiteoutsHaveNoOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		got, err := merged(layers)
		if err != nil {
			return
		}
		var moved [][]raw
		for _, entries := range layers {
			entries = slices.Clone(entries)
			// Their places are not counted: the owner tells the rest apart.
			isMarker := func(r raw) bool { _, last := split(r.name); return strings.HasPrefix(last, ".wh.") }
			var at []int
			for i, r := range entries {
				if isMarker(r) {
					at = append(at, i)
				}
			}
			if len(at) > 1 {
				order := rapid.Permutation(at).Draw(t, "order")
				before := slices.Clone(entries)
				for k, i := range at {
					entries[i] = before[order[k]]
				}
			}
			moved = append(moved, entries)
		}
		again, err := merged(moved)
		if err != nil {
			if errors.Is(err, toc.ErrInvalid) {
				return // a marker below what is no directory at that place
			}
			t.Fatal(err)
		}
		if got.text() != again.text() {
			t.Fatalf("%v\n%s\n%v\n%s", layers, got.text(), moved, again.text())
		}
	})
}
