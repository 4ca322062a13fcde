package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is a file of the image.
type entry struct {
	header tar.Header
	path   string // where its data lies; empty: in data
	data   string
}

// layer is what one layer of the image adds.
type layer struct {
	name    string
	entries []entry
	size    int64
}

// tree collects the layers of an image. A name is in one layer only.
type tree struct {
	layers []*layer
	names  map[string]bool
	looked map[string]bool // programs and libraries whose needs are added
	size   int64
}

func newTree() *tree {
	return &tree{names: map[string]bool{"": true, ".": true}, looked: map[string]bool{}}
}

// layer starts another layer, to which all is added from then on.
func (t *tree) layer(name string) { t.layers = append(t.layers, &layer{name: name}) }

func (t *tree) put(e entry) {
	l := t.layers[len(t.layers)-1]
	e.header.Size = max(e.header.Size, int64(len(e.data)))
	if e.header.Typeflag != tar.TypeReg {
		e.header.Size = 0
	}
	l.entries = append(l.entries, e)
	l.size += e.header.Size
	t.size += e.header.Size
	t.names[e.header.Name] = true
}

// make adds a file that is on no disk, and its parents.
func (t *tree) make(h tar.Header, data string) {
	if t.names[h.Name] {
		return
	}
	if parent := path.Dir(h.Name); !t.names[parent] {
		t.make(tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755}, "")
	}
	h.ModTime = time.Now()
	t.put(entry{header: h, data: data})
}

// add adds what lies at source as name, and its parents. What is neither a file, a directory
// nor a symbolic link is left out, as is what not everybody may read: the registry
// would show it to everybody.
func (t *tree) add(source, name string) error {
	if t.names[name] {
		return nil
	}
	info, err := os.Lstat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	if !isPublic(info) {
		return nil
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(source); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return fmt.Errorf("describe %s: %w", source, err)
	}
	if err := t.parent(filepath.Dir(source), path.Dir(name)); err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	t.put(entry{header: *h, path: source})
	return nil
}

// parent adds a directory as what lies at source, if that is one.
func (t *tree) parent(source, name string) error {
	if info, err := os.Lstat(source); err == nil && info.IsDir() {
		if err := t.add(source, name); err != nil {
			return err
		}
	}
	t.make(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, "")
	return nil
}

// isPublic tells whether everybody may read it.
func isPublic(info fs.FileInfo) bool {
	switch perm := info.Mode().Perm(); {
	case info.Mode().IsRegular():
		return perm&0o004 != 0
	case info.IsDir():
		return perm&0o005 == 0o005
	}
	return info.Mode()&fs.ModeSymlink != 0
}

// addAll adds what lies below source as name, until the tree has limit bytes.
// skip tells, by the path below source, what is left out.
func (t *tree) addAll(ctx context.Context, source, name string, limit int64, skip func(string, fs.DirEntry) bool) error {
	return filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case t.size >= limit:
			return filepath.SkipAll
		case d.IsDir() && (!isPublic(info) || skip(rel, d)):
			return filepath.SkipDir
		case skip(rel, d), d.Type().IsRegular() && t.size+info.Size() > limit+limit/20:
			return nil
		}
		return t.add(p, path.Join(name, rel))
	})
}

// nothing skips nothing.
func nothing(string, fs.DirEntry) bool { return false }

// write writes the layer as a tar to name, in the order of names.
func (l *layer) write(ctx context.Context, name string) (err error) {
	slices.SortFunc(l.entries, func(a, b entry) int { return strings.Compare(a.header.Name, b.header.Name) })
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buffered)
	for _, e := range l.entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := e.write(w); err != nil {
			return fmt.Errorf("pack %s: %w", e.header.Name, err)
		}
	}
	return errors.Join(w.Close(), buffered.Flush())
}

func (e *entry) write(w *tar.Writer) error {
	h, data := e.header, []byte(e.data)
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if h.Typeflag == tar.TypeReg && e.path != "" {
		var err error
		if data, err = os.ReadFile(e.path); err != nil {
			return err
		}
		h.Size = int64(len(data)) // it may have been written to meanwhile
	}
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
