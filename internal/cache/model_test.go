package cache

import (
	"bytes"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"pgregory.net/rapid"
)

// model is an object and what must be true of it: which blocks are present, and
// which bytes it has.
type model struct {
	dir    string
	root   *Root
	object *Object
	data   []byte
	has    []bool
}

func (m *model) open(t *rapid.T) {
	var err error
	m.root, err = OpenRoot(m.dir, RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	if m.object, err = m.root.Create(metaOf(7, int64(len(m.data)))); err != nil {
		t.Fatal(err)
	}
	if !m.object.Recovered().Clean() {
		t.Fatalf("after a clean close: %+v", m.object.Recovered())
	}
}

// span draws some blocks.
func (m *model) span(t *rapid.T) (first, last int, r ondemand.Range) {
	first = rapid.IntRange(0, len(m.has)-1).Draw(t, "first")
	last = rapid.IntRange(first+1, min(first+9, len(m.has))).Draw(t, "last")
	off, end := first*block, min(last*block, len(m.data))
	return first, last, ondemand.Range{Off: int64(off), Len: int64(end - off)}
}

// missing is what Missing must answer.
func (m *model) missing(first, last int) (out []ondemand.Range) {
	for b := first; b < last; b++ {
		if !m.has[b] {
			off := int64(b * block)
			out = appendRange(out, ondemand.Range{Off: off, Len: min(block, int64(len(m.data))-off)})
		}
	}
	return out
}

func (m *model) check(t *rapid.T) {
	present, complete := int64(0), true
	for b, has := range m.has {
		r := ondemand.Range{Off: int64(b * block), Len: min(block, int64(len(m.data)-b*block))}
		if m.object.Has(r) != has {
			t.Fatalf("block %d: has %v, want %v", b, !has, has)
		}
		complete = complete && has
		if !has {
			continue
		}
		present += r.Len
		got := make([]byte, r.Len)
		if _, err := m.object.File().ReadAt(got, r.Off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, m.data[r.Off:r.End()]) {
			t.Fatalf("block %d has other bytes", b)
		}
	}
	if m.object.Present() != present || m.object.Complete() != complete {
		t.Fatalf("present %d, complete %v; want %d, %v", m.object.Present(), m.object.Complete(), present, complete)
	}
}

func TestObjectBehavesAsItsModel(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		size := rapid.IntRange(1, 40*block).Draw(t, "size")
		m := &model{dir: dir, data: content(uint64(n), size), has: make([]bool, ondemand.BlockCount(int64(size)))}
		m.open(t)
		defer func() {
			if err := m.root.Remove(m.object.ID()); err != nil {
				t.Error(err)
			}
			if err := m.root.Close(); err != nil {
				t.Error(err)
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"": m.check,
			"fill": func(t *rapid.T) {
				first, last, r := m.span(t)
				if err := m.object.Fill(m.data[r.Off:r.End()], r.Off); err != nil {
					t.Fatal(err)
				}
				for b := first; b < last; b++ {
					m.has[b] = true
				}
			},
			"invalidate": func(t *rapid.T) {
				first, last, r := m.span(t)
				if err := m.object.Invalidate(r); err != nil {
					t.Fatal(err)
				}
				clear(m.has[first:last])
			},
			"missing": func(t *rapid.T) {
				first, last, r := m.span(t)
				got, want := m.object.Missing(r), m.missing(first, last)
				if len(got) != len(want) {
					t.Fatalf("missing %v, want %v", got, want)
				}
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("missing %v, want %v", got, want)
					}
				}
			},
			"checkpoint": func(t *rapid.T) {
				if err := m.object.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := m.root.Close(); err != nil {
					t.Fatal(err)
				}
				m.open(t)
			},
		})
	})
}
