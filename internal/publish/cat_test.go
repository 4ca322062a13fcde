package publish_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"net/http"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func text(name, data string) toctest.File { return toctest.Reg(name, []byte(data)) }

func linkTo(kind byte, name, target string) toctest.File {
	f := toctest.Reg(name, nil)
	f.Typeflag, f.Linkname = kind, target
	return f
}

// filler makes a layer larger than what gets no zTOC.
func filler(name string) toctest.File { return toctest.Reg(name, toctest.Random(7, 300_000)) }

// stacked is an image of gzip layers; those whose list begins with a nil name are zstd.
func stacked(t *testing.T, r *ocitest.Registry, lists ...[]toctest.File) (ref string, blobs [][]byte) {
	t.Helper()
	img := ocitest.ImageFor(t, gcr.Platform{OS: "linux", Architecture: "amd64"})
	for _, list := range lists {
		kind := types.OCILayer
		if list[0].Name == "" {
			list, kind = list[1:], types.OCILayerZStd
		}
		tar := toctest.Tar(t, list)
		blob := packed(t, tar)
		if kind == types.OCILayerZStd {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			blob = w.EncodeAll(tar, nil)
		}
		blobs = append(blobs, blob)
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: gzipLayer{static.NewLayer(blob, kind), tar}, MediaType: kind})
		if err != nil {
			t.Fatal(err)
		}
	}
	return r.Push(t, "app:1", img), blobs
}

// catOf indexes the layers of more than 100 KB, and reads a file.
func catOf(t *testing.T, r *ocitest.Registry, ref, name string) (string, error) {
	t.Helper()
	o := index(2, "n")
	o.MinLayerSize = 100_000
	if _, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err := opened(t, r).Cat(t.Context(), &got, name)
	return got.String(), err
}

// opened is the index of app:n, until the test ends.
func opened(t *testing.T, r *ocitest.Registry) *publish.Opened {
	t.Helper()
	img, err := oci.Open(t.Context(), r.Host()+"/app:n", options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	x, err := publish.OpenIndex(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// What a name means is what the mounted image has under it, whichever of its layers have
// a zTOC.
func TestCatIsWhatTheImageHas(t *testing.T) {
	type list = []toctest.File
	const hard, soft = tar.TypeLink, tar.TypeSymlink
	for what, c := range map[string]struct {
		layers []list
		name   string
		want   string
		err    error
	}{
		"replaced by a small layer":       {layers: []list{{text("etc/x", "old"), filler("f")}, {text("etc/x", "new")}}, want: "new"},
		"replaced by a small zstd layer":  {layers: []list{{text("etc/x", "old"), filler("f")}, {{}, text("etc/x", "new")}}, want: "new"},
		"replaced by a large layer":       {layers: []list{{text("etc/x", "old"), filler("f")}, {text("etc/x", "new"), filler("g")}}, want: "new"},
		"replaced in its layer":           {layers: []list{{text("etc/x", "old"), text("etc/x", "new"), filler("f")}}, want: "new"},
		"deleted by a small layer":        {layers: []list{{text("etc/x", "old"), filler("f")}, {text("etc/.wh.x", "")}}, err: source.ErrNotFound},
		"deleted with its directory":      {layers: []list{{text("etc/x", "old"), filler("f")}, {text(".wh.etc", ""), filler("g")}}, err: source.ErrNotFound},
		"an opaque directory":             {layers: []list{{text("etc/x", "old"), filler("f")}, {text("etc/.wh..wh..opq", "")}}, err: source.ErrNotFound},
		"a file where the directory was":  {layers: []list{{text("etc/x", "old"), filler("f")}, {text("etc", "")}}, err: source.ErrNotFound},
		"a symlink in the directory's":    {layers: []list{{text("etc/x", "old"), filler("f")}, {linkTo(soft, "etc", "usr")}}, err: source.ErrNotFound},
		"under a directory":               {layers: []list{{text("etc/x", "old"), filler("f")}, {toctest.Dir("etc/")}}, want: "old"},
		"only in a small layer":           {layers: []list{{text("etc/x", "old")}, {filler("f")}}, want: "old"},
		"nowhere":                         {layers: []list{{filler("f")}, {text("y", "")}}, err: source.ErrNotFound},
		"a symlink":                       {layers: []list{{linkTo(soft, "etc/x", "y"), filler("f")}}, err: publish.ErrNoFile},
		"a directory above":               {layers: []list{{text("etc/x", "old"), filler("f")}, {toctest.Dir("etc/x/")}}, err: publish.ErrNoFile},
		"a link":                          {layers: []list{{text("a", "old"), linkTo(hard, "etc/x", "a"), filler("f")}}, want: "old"},
		"a link whose target is replaced": {layers: []list{{text("a", "old"), linkTo(hard, "etc/x", "a"), filler("f")}, {text("a", "new"), filler("g")}}, want: "old"},
		"a small layer's, the same":       {layers: []list{{text("a", "old"), linkTo(hard, "etc/x", "a")}, {text("a", "new"), filler("g")}}, want: "old"},
		"a link whose target is deleted":  {layers: []list{{text("a", "old"), linkTo(hard, "etc/x", "a"), filler("f")}, {text(".wh.a", "")}}, want: "old"},
		"a link to a file below":          {layers: []list{{text("a", "old"), filler("f")}, {linkTo(hard, "etc/x", "a")}, {text("a", "new")}}, want: "old"},
		"a link, then another target":     {layers: []list{{text("a", "old"), linkTo(hard, "etc/x", "a"), text("a", "new"), filler("f")}}, want: "old"},
		"a link before its target":        {layers: []list{{linkTo(hard, "etc/x", "a"), text("a", "new"), filler("f")}}, want: "new"},
		"the same, and a file below":      {layers: []list{{text("a", "old"), filler("f")}, {linkTo(hard, "etc/x", "a"), text("a", "new"), filler("g")}}, want: "old"},
		"a link to what its layer hides":  {layers: []list{{text("a", "old"), filler("f")}, {text(".wh.a", ""), linkTo(hard, "etc/x", "a"), filler("g")}}, want: "old"},
		"a link to a link":                {layers: []list{{text("a", "old"), linkTo(hard, "b", "a"), linkTo(hard, "etc/x", "b"), filler("f")}, {text("b", "new")}}, want: "old"},
		"a file that is given twice":      {layers: []list{{text("etc/x", "old"), linkTo(hard, "etc/x", "etc/x"), filler("f")}}, want: "old"},
	} {
		t.Run(what, func(t *testing.T) {
			r := ocitest.New(t)
			ref, _ := stacked(t, r, c.layers...)
			got, err := catOf(t, r, ref, "/etc/x")
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("%q, %v; want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}

// A large layer without a zTOC is not looked into, and what it may have is not guessed.
func TestCatBelowALargeLayer(t *testing.T) {
	r := ocitest.New(t)
	ref, _ := stacked(t, r, []toctest.File{text("x", "old"), filler("f")},
		[]toctest.File{{}, toctest.Reg("big", toctest.Random(3, 11<<20))}, []toctest.File{text("y", "above"), filler("g")})
	if got, err := catOf(t, r, ref, "x"); got != "" || !errors.Is(err, publish.ErrNoZtoc) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := catOf(t, r, ref, "y"); got != "above" || err != nil {
		t.Errorf("above it: %q, %v", got, err)
	}
}

// A small layer that is not what its digest says says nothing.
func TestCatOfADamagedSmallLayer(t *testing.T) {
	r := ocitest.New(t)
	ref, blobs := stacked(t, r, []toctest.File{text("x", "old"), filler("f")}, []toctest.File{text("x", "new")})
	if got, err := catOf(t, r, ref, "x"); got != "new" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	bad := packed(t, toctest.Tar(t, []toctest.File{text("x", "bad")}))
	bad = append(bad, make([]byte, max(0, len(blobs[1])-len(bad)))...)[:len(blobs[1])]
	r.Blob(blobs[1], http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(bad))
	}))
	var got bytes.Buffer
	if err := opened(t, r).Cat(t.Context(), &got, "x"); got.Len() > 0 || !errors.Is(err, toc.ErrDigest) {
		t.Errorf("%q, %v", got.String(), err)
	}
}

// Of many indices that refer to an image only so many are read.
func TestManyIndices(t *testing.T) {
	r := ocitest.New(t)
	ref, _ := stacked(t, r, []toctest.File{text("x", "data"), filler("f")})
	for n := range int64(20) {
		o := index(1, "")
		o.SpanSize += n
		if _, err := publish.Index(t.Context(), whole(t, ref, options()), upload(t, ref, options()), o); err != nil {
			t.Fatal(err)
		}
	}
	img, err := oci.Open(t.Context(), ref, options())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}()
	if list, err := publish.Indices(t.Context(), img, 0); err != nil || len(list) != 16 {
		t.Errorf("%d indices, %v", len(list), err)
	}
}
