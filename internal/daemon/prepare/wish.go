package prepare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Wish is how layers are to be read, in place of the best way that each has. Empty:
// there is none.
type Wish string

// The wishes. Of an image with a SOCI index the layers that it does not list, which are
// small, are scanned, whatever is wished.
const (
	WishEStargz     Wish = "estargz"
	WishZstdChunked Wish = "zstdchunked"
	WishSOCI        Wish = "soci" // of either version
	WishSOCI2       Wish = "soci-v2"
	WishSOCI1       Wish = "soci-v1"
	WishScanned     Wish = "scanned"
)

// ErrWish: what is said to be a wish is none.
var ErrWish = errors.New("no such format")

// formats are those that a wish is content with, the best first.
func (w Wish) formats() ([]Format, error) {
	switch w {
	case "":
		return []Format{ZstdChunked, EStargz, SOCI2, SOCI1, Scanned}, nil
	case WishEStargz:
		return []Format{EStargz}, nil
	case WishZstdChunked:
		return []Format{ZstdChunked}, nil
	case WishSOCI:
		return []Format{SOCI2, SOCI1}, nil
	case WishSOCI2:
		return []Format{SOCI2}, nil
	case WishSOCI1:
		return []Format{SOCI1}, nil
	case WishScanned:
		return []Format{Scanned}, nil
	}
	return nil, fmt.Errorf("%w: %.40q", ErrWish, string(w))
}

// Check tells whether w is a wish.
func (w Wish) Check() error {
	_, err := w.formats()
	return err
}

// allows tells whether a layer may be read as f.
func (w Wish) allows(f Format) bool {
	list, err := w.formats()
	return err == nil && slices.Contains(list, f)
}

// isSOCI tells whether only layers with a zTOC are wished for.
func (w Wish) isSOCI() bool { return w == WishSOCI || w == WishSOCI1 || w == WishSOCI2 }

// fulfils tells whether the plan is as it is wished.
func (p *Plan) fulfils(w Wish) bool {
	found := false
	for _, l := range p.Layers {
		switch {
		case w.allows(l.Format):
			found = true
		case !w.isSOCI() || l.Format != Scanned:
			return false
		}
	}
	return found || w == "" || len(p.Layers) == 0 && !w.isSOCI()
}

// WishError is that an image's layers cannot be read as it was wished.
type WishError struct {
	Wish Wish
	// None: no layer can. Otherwise it is one that cannot.
	None bool
	// Why it cannot although it is said to; empty where it is not.
	Why string
	// Has are the formats of each layer.
	Has []string
}

// Error says what the layers have.
func (e *WishError) Error() string {
	text := "this layer has not got it"
	if e.None {
		text = "no layer has it"
	}
	if e.Why != "" {
		text += ": " + e.Why
	}
	return fmt.Sprintf("format %s is asked for, and %s; layers are: %s", e.Wish, text, strings.Join(e.Has, "; "))
}

// refuse is the WishError of one layer, or of all.
func (l *Library) refuse(ctx context.Context, j *Job, none bool, why string) error {
	e := &WishError{Wish: j.Asked.Format, None: none, Why: why}
	before, same, able := "", 0, why != ""
	tell := func(to int) {
		if before != "" {
			e.Has = append(e.Has, fmt.Sprintf("%s %s", numbers(to-same, to), before))
		}
	}
	for n := range j.Image.Layers {
		has, err := l.has(ctx, j, n)
		if err != nil {
			return errors.Join(e, err)
		}
		able = able || has == noRanges || slices.ContainsFunc(strings.Split(has, ", "), func(f string) bool { return e.Wish.allows(Format(f)) })
		if has != before {
			tell(n)
			before, same = has, 0
		}
		same++
	}
	tell(len(j.Image.Layers))
	e.None = none || !able
	return e
}

// numbers names the layers (from, to].
func numbers(from, to int) string {
	if to-from == 1 {
		return fmt.Sprintf("%d", to)
	}
	return fmt.Sprintf("%d to %d", from+1, to)
}

// noRanges is what has says of a layer of which it cannot tell.
const noRanges = "in a registry without ranges"

// has is what layer n can be read as, in words.
func (l *Library) has(ctx context.Context, j *Job, n int) (text string, err error) {
	from := j.Image.Layers[n]
	blob, err := j.Blob(ctx, from)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if source.IsSequential(blob) {
		return noRanges, nil
	}
	var list []string
	layer := &toc.Layer{Blob: blob, Annotations: from.Annotations}
	for _, r := range readers() {
		_, err := r.read(ctx, layer)
		if err == nil {
			list = append(list, string(r.format))
		} else if !errors.Is(err, toc.ErrNotFormat) {
			return "", err
		}
	}
	for _, version := range []int{2, 1} {
		if j.Indices.Find == nil {
			break
		}
		z, err := j.Indices.Find(ctx, from, version)
		if err != nil {
			return "", err
		}
		if z != nil {
			list = append(list, string(z.format()))
		}
	}
	if len(list) == 0 {
		list = append(list, "without an index")
	}
	return strings.Join(list, ", "), nil
}

// zTOC finds that of a layer, of the version that is wished for.
func (j *Job) zTOC(ctx context.Context, from oci.Layer) (*Ztoc, error) {
	if j.Indices.Find == nil {
		return nil, nil
	}
	version := 0
	switch j.Asked.Format {
	case WishSOCI1:
		version = 1
	case WishSOCI2:
		version = 2
	}
	return j.Indices.Find(ctx, from, version)
}

// listed finds out which layers have a zTOC, if only such are wished for: the others
// are scanned, unless they all are.
func (l *Library) listed(ctx context.Context, j *Job) error {
	if err := j.Asked.Format.Check(); err != nil || !j.Asked.Format.isSOCI() {
		return err
	}
	j.ztocs = make([]*Ztoc, len(j.Image.Layers))
	found := false
	for n, from := range j.Image.Layers {
		z, err := j.zTOC(ctx, from)
		if err != nil {
			return err
		}
		j.ztocs[n], found = z, found || z != nil
	}
	if !found {
		return l.refuse(ctx, j, true, "")
	}
	return nil
}

// allows tells whether layer n may be read as f.
func (j *Job) allows(n int, f Format) bool {
	return j.Asked.Format.allows(f) || f == Scanned && j.Asked.Format.isSOCI() && j.ztocs[n] == nil
}
