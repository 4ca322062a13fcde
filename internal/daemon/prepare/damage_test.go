package prepare

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/toc"
)

// kept are the files of a plan of one layer, by what they are.
func (b *bench) kept(p *Plan, asked Asked) map[string]string {
	return map[string]string{
		"image":  p.Metadata,
		"plan":   filepath.Join(filepath.Dir(p.Metadata), "plan.json"),
		"answer": askedPath(b.dir, asked),
		"toc":    b.tocPath(p.Layers[0].Device),
	}
}

// damages are ways to spoil a file, each of which makes another one of it.
func damages(data []byte) map[string]func(name string) error {
	list := map[string]func(string) error{
		"empty":     func(name string) error { return os.WriteFile(name, nil, 0o600) },
		"a byte on": func(name string) error { return os.WriteFile(name, append(bytes.Clone(data), 'x'), 0o600) },
		"gone":      os.Remove,
		"directory": func(name string) error {
			return errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "full"), 0o700))
		},
		"pipe": func(name string) error { return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)) },
	}
	at := []int{0, 1, 2, 10, 70, 75, 80, 100, len(data) / 3, len(data) / 2, len(data) - 5, len(data) - 3, len(data) - 1}
	if i := bytes.Index(data, []byte("lacunaTC")); i >= 0 {
		at = append(at, i-11, i-1, i, i+8, i+12, i+20)
	}
	for _, i := range at {
		if i < 0 || i >= len(data) {
			continue
		}
		list[fmt.Sprintf("byte %d", i)] = func(name string) error {
			wrong := bytes.Clone(data)
			wrong[i] ^= 0x15
			return os.WriteFile(name, wrong, 0o600)
		}
		list[fmt.Sprintf("%d bytes", i)] = func(name string) error { return os.WriteFile(name, data[:i], 0o600) }
	}
	return list
}

// Whatever becomes of a file that was kept, it is found out before a mount, and the
// file is made anew, of the same bytes. Without the registry there is an error.
func TestDamagedFilesAreMadeAnew(t *testing.T) {
	data, digest := estargzOf(t, "data")
	asked := Asked{Ref: "a"}
	for _, format := range []string{"estargz", "scanned"} {
		for _, what := range []string{"image", "plan", "answer", "toc"} {
			t.Run(format+"/"+what, func(t *testing.T) {
				b := newBench(t)
				from := layer{data: data, toc: digest}
				if format == "scanned" {
					from = layer{data: tarOf(t, "data")}
				}
				img := b.image("one/a:v1", from)
				p := b.prepare(img, asked, 1)
				name := b.kept(p, asked)[what]
				right, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				opened := int64(0)
				if what == "toc" {
					opened = 1
				}
				for damage, do := range damages(right) {
					if err := do(name); err != nil {
						t.Fatalf("%s: %v", damage, err)
					}
					found, err := b.Find(asked)
					if known := damage == "gone" && what == "answer"; found != nil || (err == nil) != known {
						t.Errorf("%s, and found: %+v, %v", damage, found, err)
					}
					if err != nil && damage != "gone" && !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "version") {
						t.Errorf("%s: %v", damage, err)
					}
					if _, err := b.Load(p.Key); (err != nil) != (what == "plan") {
						t.Errorf("%s: load: %v", damage, err)
					}
					if what == "toc" {
						if _, err := Parts(b.dir, p.Layers[0].Device, p.Layers[0].Size); err == nil {
							t.Errorf("%s: digests are read", damage)
						}
					}
					if again := b.prepare(img, asked, opened); again.Key != p.Key || again.Sum != p.Sum {
						t.Errorf("%s: made anew: %+v, want %+v", damage, again, p)
					}
					if made, err := os.ReadFile(name); err != nil || !bytes.Equal(made, right) {
						t.Errorf("%s: made anew, of other bytes: %v", damage, err)
					}
					if got := b.read(img, p, 0, 4); got != "data" {
						t.Errorf("%s: %q is read", damage, got)
					}
				}
				orphans, err := Orphans(b.dir, func(ondemand.ObjectID) bool { return true }, func(string) bool { return false })
				if err != nil {
					t.Error(err)
				}
				for _, path := range orphans { // what was in the way
					if err := os.RemoveAll(path); err != nil {
						t.Error(err)
					}
				}
				if _, err := b.Find(asked); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A table of contents under another's name is none.
func TestTablesOfContentsKnowTheirDevice(t *testing.T) {
	b := newBench(t)
	asked := Asked{Ref: "a"}
	one, oneTOC := estargzOf(t, "one data")
	two, twoTOC := estargzOf(t, "two data")
	img := b.image("one/a:v1", layer{data: one, toc: oneTOC}, layer{data: two, toc: twoTOC})
	p := b.prepare(img, asked, 2)
	paths := []string{b.tocPath(p.Layers[0].Device), b.tocPath(p.Layers[1].Device)}
	for n := range 2 {
		if err := os.Rename(paths[1-n], paths[n]); err != nil {
			t.Fatal(err)
		}
		if found, err := b.Find(asked); found != nil || err == nil {
			t.Errorf("%+v, %v", found, err)
		}
		b.prepare(img, asked, 2)
		for n, want := range []string{"one data", "two data"} {
			if got := b.read(img, p, n, 8); got != want {
				t.Errorf("%q is read, want %q", got, want)
			}
		}
	}
}

// Where a plan's directory should be there may be a file.
func TestFileInThePlaceOfAPlan(t *testing.T) {
	b := newBench(t)
	data, digest := estargzOf(t, "data")
	img := b.image("one/a:v1", layer{data: data, toc: digest})
	p := b.prepare(img, Asked{Ref: "a"}, 1)
	dir := filepath.Dir(p.Metadata)
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	b.prepare(img, Asked{Ref: "a"}, 0)
}

// A table of contents that is damaged while its image is mounted is an error to who
// reads, and none once it is made anew.
func TestDamagedTableOfContentsOfADevice(t *testing.T) {
	b := newBench(t)
	data, digest := estargzOf(t, "data")
	img := b.image("one/a:v1", layer{data: data, toc: digest})
	p := b.prepare(img, Asked{Ref: "a"}, 1)
	d := b.Device(p.Layers[0], func() (source.Blob, error) { return b.open(img, img.Layers[0]), nil }, nil)
	name := b.tocPath(p.Layers[0].Device)
	right, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, right[:len(right)-1], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadRange(t.Context(), 0, 4); !errors.Is(err, ErrDamaged) || !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("%v", err)
	}
	b.prepare(img, Asked{Ref: "b"}, 1)
	r, err := d.ReadRange(t.Context(), 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), d.Close()); err != nil {
		t.Error(err)
	}
}

// FuzzTOCHead wants what is taken for a first line to be one that is written.
func FuzzTOCHead(f *testing.F) {
	for _, l := range []Layer{{}, {Device: "aa", Verified: true}, {Device: "bb", Why: "\"\n\xff %d"}} {
		f.Add(tocHead(l))
		f.Add(strings.TrimSuffix(tocHead(l), "\n"))
	}
	f.Add(withSum("v aa bb"))
	f.Add(withSum(`v aa ""x`))
	f.Fuzz(func(t *testing.T, line string) {
		l, ok := parseTOCHead(line)
		if ok && tocHead(l) != line {
			t.Errorf("%q is %+v", line, l)
		}
		if ok != (line == tocHead(l)) {
			t.Errorf("%q: %v", line, ok)
		}
	})
}

// FuzzUnseal wants plans that are read to be ones that can be mounted, and none of
// other bytes than were sealed.
func FuzzUnseal(f *testing.F) {
	dir := f.TempDir()
	var plan bytes.Buffer
	if err := seal(&plan, Plan{Layers: []Layer{{Device: "aa"}}, Devices: []int{0}}); err != nil {
		f.Fatal(err)
	}
	f.Add(plan.Bytes())
	f.Add([]byte(`{"version":1}`))
	for _, content := range []string{"null", "[]", "{}", `{"image":{"Layers":[{}]},"layers":[{}]}`} {
		b, err := sealBytes([]byte(content))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(dir, "plan.json")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var p Plan
		if unseal(name, &p) != nil {
			return
		}
		var again bytes.Buffer
		if err := seal(&again, &p); err != nil {
			t.Fatal(err)
		}
	})
}
