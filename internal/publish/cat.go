package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/spans"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// Errors of Cat.
var (
	// ErrNoFile: a name is that of something without data, or of nothing; then it is
	// source.ErrNotFound too.
	ErrNoFile = errors.New("no regular file")
	// ErrNoZtoc: what a name means depends on a layer that has no zTOC, and is too large
	// to be read for it.
	ErrNoZtoc = errors.New("no zTOC")
)

// errNotThere is ErrNoFile of a name that nothing has.
var errNotThere = fmt.Errorf("%w: %w", ErrNoFile, source.ErrNotFound)

// Cat writes the bytes of the file that the image has under the name, as who mounts it
// finds it. Of a layer with a zTOC only the spans that hold them are read; small layers
// without one that lie above are read whole, since they may replace the file.
func (o *Opened) Cat(ctx context.Context, out io.Writer, name string) error {
	l, i, err := o.follow(ctx, clean(name))
	if err == nil {
		err = l.cat(ctx, out, i)
	}
	if err != nil {
		return fmt.Errorf("read %s of %s: %w", name, o.image.Ref, err)
	}
	return nil
}

// maxLinks bounds the hard links that lead to a file.
const maxLinks = 10

// follow is the layer of the file that name means, and its place among the entries.
func (o *Opened) follow(ctx context.Context, name string) (*OpenedLayer, int, error) {
	n, i, err := o.find(ctx, name, len(o.Layers))
	for range maxLinks {
		if err != nil {
			return nil, 0, err
		}
		l := &o.Layers[n]
		switch f := &l.files()[i]; f.Type {
		case "reg":
			return l, i, nil
		case "hardlink":
			n, i, err = o.target(ctx, n, i)
		default:
			return nil, 0, fmt.Errorf("%w: it is a %s", ErrNoFile, f.Type)
		}
	}
	return nil, 0, errors.New("too many links")
}

// find is where the layers below top have the name: the highest one that has it, and the
// last of its entries. ErrNoFile: none has, or one hides those below.
func (o *Opened) find(ctx context.Context, name string, top int) (n, i int, err error) {
	for n := top - 1; n >= 0; n-- {
		l := &o.Layers[n]
		if err := l.read(ctx); err != nil {
			return 0, 0, fmt.Errorf("layer %.19s may have it or hide it: %w", l.Digest, err)
		}
		if i := l.last(name, len(l.files())); i >= 0 {
			return n, i, nil
		}
		if why := l.hides(name); why != "" {
			return 0, 0, fmt.Errorf("%w: layer %.19s %s", errNotThere, l.Digest, why)
		}
	}
	return 0, 0, errNotThere
}

// target is what entry i of layer n is a hard link to: what the name meant when the
// layer had come so far, whatever layers above make of the name. Where there was no
// such thing it is what the layer itself has later, or else hides.
func (o *Opened) target(ctx context.Context, n, i int) (in, at int, err error) {
	l := &o.Layers[n]
	name := clean(l.files()[i].Link)
	if at := l.last(name, i); at >= 0 {
		return n, at, nil
	}
	later := l.last(name, len(l.files()))
	if l.hides(name) == "" || later < 0 {
		if in, at, err = o.find(ctx, name, n); err == nil || !errors.Is(err, ErrNoFile) {
			return in, at, err
		}
	}
	if later >= 0 && later != i {
		return n, later, nil
	}
	return 0, 0, fmt.Errorf("a link to %s: %w", name, errNotThere)
}

// files are the layer's entries, which read has.
func (l *OpenedLayer) files() []soci.File {
	if l.Ztoc != nil {
		return l.Ztoc.Files
	}
	return l.small.files
}

// last is the last of the first n entries with the name; -1: there is none.
func (l *OpenedLayer) last(name string, n int) int {
	all := l.files()
	for i := n - 1; i >= 0; i-- {
		if clean(all[i].Name) == name {
			return i
		}
	}
	return -1
}

// hides tells why what layers below have under the name is not in the image: a whiteout
// of it or of a directory above (image-spec, layer.md, "Whiteouts"), or something that
// is no directory in the place of one. Empty: it is.
func (l *OpenedLayer) hides(name string) (why string) {
	marks, above := make(map[string]bool), make(map[string]bool)
	for at := name; at != "."; at = path.Dir(at) {
		marks[path.Join(path.Dir(at), ".wh."+path.Base(at))] = true
		marks[path.Join(path.Dir(at), ".wh..wh..opq")] = true
		above[path.Dir(at)] = true
	}
	for i := range l.files() {
		f := &l.files()[i]
		switch at := clean(f.Name); {
		case marks[at]:
			return "deletes it"
		case above[at] && f.Type != "dir":
			why = fmt.Sprintf("has a %s at %s", f.Type, at)
		case above[at]:
			why = ""
		}
	}
	return why
}

func clean(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }

// cat writes the data of entry i, a regular file.
func (l *OpenedLayer) cat(ctx context.Context, out io.Writer, i int) (err error) {
	if l.small != nil {
		return l.small.cat(ctx, out, i)
	}
	f := &l.Ztoc.Files[i]
	t, err := l.Ztoc.TOC() // which says whether files lie where they can
	if err != nil || t == nil || f.Size == 0 {
		return err
	}
	blob, err := l.Blob(ctx)
	if err != nil {
		return err
	}
	blob = retry.Wrap(blob, retry.Policy{})
	if l.Ztoc.Spans.Codec == toc.Gzip {
		blob = spans.New(blob, spanIndex{l.reader}, spans.NewGate())
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if err := l.checkHeader(ctx, blob, f); err != nil {
		return err
	}
	body, err := blob.ReadRange(ctx, f.Off, f.Size)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, body)
	return errors.Join(err, body.Close())
}

// checkHeader compares what lies before the file's data with its name and size.
func (l *OpenedLayer) checkHeader(ctx context.Context, blob source.Blob, f *soci.File) error {
	off, n, err := l.Ztoc.Header(f)
	if err != nil {
		return err
	}
	body, err := blob.ReadRange(ctx, off, n)
	if err != nil {
		return err
	}
	header := make([]byte, n)
	_, err = io.ReadFull(body, header)
	if err := errors.Join(err, body.Close()); err != nil {
		return err
	}
	return f.CheckHeader(header)
}
