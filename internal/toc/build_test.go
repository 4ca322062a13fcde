package toc_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// parse reads entries as the tests write them: "dir a", "reg a 5", "link a b",
// "sym a b", "fifo a". The size of a regular file tells it from others.
func parse(t testing.TB, text string) []toc.Entry {
	t.Helper()
	types := map[string]toc.Type{
		"dir": toc.Directory, "reg": toc.Regular, "link": toc.Hardlink, "sym": toc.Symlink, "fifo": toc.Fifo,
	}
	var entries []toc.Entry
	for line := range strings.SplitSeq(text, ";") {
		f := strings.Fields(line)
		e := toc.Entry{Type: types[f[0]], Name: f[1]}
		if e.Type == 0 {
			t.Fatalf("entry %q", line)
		}
		switch e.Type {
		case toc.Regular:
			if _, err := fmt.Sscan(f[2], &e.Size); err != nil {
				t.Fatal(err)
			}
		case toc.Hardlink, toc.Symlink:
			e.Link = f[2]
		}
		entries = append(entries, e)
	}
	return entries
}

// show is the opposite of parse, with the types that only a TOC has.
func show(t *toc.TOC) string {
	var lines []string
	for _, e := range t.Entries {
		names := map[toc.Type]string{
			toc.Directory: "dir", toc.Regular: "reg", toc.Hardlink: "link", toc.Symlink: "sym", toc.Fifo: "fifo",
			toc.Whiteout: "whiteout", toc.Opaque: "opaque", toc.Replaced: "replaced",
		}
		line := names[e.Type] + " " + e.Name
		if e.Type == toc.Regular || e.Type == toc.Replaced {
			line += fmt.Sprint(" ", e.Size)
		}
		if e.Link != "" {
			line += " " + e.Link
		}
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "; ")
}

func build(entries []toc.Entry) (*toc.TOC, error) {
	b := toc.NewBuilder(1 << 40)
	for _, e := range entries {
		if _, err := b.Add(e); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

func TestBuilder(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"names":       {"dir ./; reg ./a//b/./c 1; dir /d/; sym //e/ /../x/", "dir; reg a/b/c 1; dir d; sym e /../x/"},
		"root again":  {"dir /; dir .", "dir"},
		"whiteouts":   {"reg a/.wh.b 0; reg .wh.c 9; reg d/.wh..wh..opq 0; reg .wh..wh..opq 0", "whiteout a/b; whiteout c; opaque d; opaque"},
		"private":     {"dir .wh..wh.plnk; reg .wh..wh.plnk/1.2 1; reg a/.wh..wh.plnk/1 1; reg .wh..wh.aufs 0; reg x 1", "reg x 1"},
		"twice":       {"reg a/.wh.b 0; reg a/.wh.b 0; reg a/.wh..wh..opq 0; reg a/.wh..wh..opq 0", "whiteout a/b; opaque a"},
		"and back":    {"reg a/.wh.b 0; reg a/b 1", "whiteout a/b; reg a/b 1"},
		"last wins":   {"reg a 5; reg b 1; reg a 7", "replaced 5; reg b 1; reg a 7"},
		"empty first": {"reg a 0; reg a 7", "reg a 7"},
		"dir twice":   {"dir a; reg a/b 1; dir a/", "reg a/b 1; dir a"},
		"dir to file": {"dir a; reg a/b 1; dir a/c; reg a/c/.wh.x 0; reg a/.wh..wh..opq 0; reg a 2", "replaced 1; reg a 2"},
		"implied dir": {"reg a/b/c 1; sym a x", "replaced 1; sym a x"},
		"and a dir":   {"reg a/b 1; reg a 2; dir a; reg a/b 3", "opaque a; replaced 1; replaced 2; dir a; reg a/b 3"},
		"stale file":  {"reg d/e 1; reg d 2; dir d; reg d/e/f 3", "opaque d; replaced 1; replaced 2; dir d; reg d/e/f 3"},
		"marker back": {"reg d/.wh.x 0; reg d 2; dir d; reg d/.wh.x 0", "opaque d; replaced 2; dir d; whiteout d/x"},

		"link":                     {"reg a 5; link b ./a; link c /b", "reg a 5; link b a; link c a"},
		"link before":              {"link c b; link b a; reg a 5", "link c b; link b a; reg a 5"},
		"link below":               {"link b lower; link c b", "link b lower; link c lower"},
		"link below late":          {"link c b; link b lower", "link c b; link b lower"},
		"link of a link of below":  {"link b lower; reg lower 5; link c b", "link b lower; link c lower; reg lower 5"},
		"links before their chain": {"link d b; link c d; link b a; reg a 5", "link d b; link c b; link b a; reg a 5"},
		"link before a promoted":   {"reg a 5; link c b; link b a; fifo a", "link c b; reg b 5; fifo a"},
		"opaque already":           {"reg d 1; dir d; reg d/.wh..wh..opq 0", "replaced 1; dir d; opaque d"},
		"link to sym":              {"sym a x; link b a", "sym a x; link b a"},
		"link to itself":           {"reg a 5; link a a", "reg a 5"},
		"old data":                 {"reg a 5; link b a; reg a 7", "reg b 5; reg a 7"},
		"old data, two":            {"reg a 5; link b a; link c b; reg a 7; link d a", "reg b 5; link c b; reg a 7; link d a"},
		"link replaced":            {"reg a 5; link b a; reg b 7", "reg a 5; reg b 7"},
		"both gone":                {"reg a 5; link b a; fifo a; fifo b", "replaced 5; fifo a; fifo b"},
		"swapped":                  {"reg a 5; link b a; link a b", "reg b 5; link a b"},
		"dir with target":          {"reg d/a 5; link b d/a; reg d 7", "reg b 5; reg d 7"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := build(parse(t, c.in))
			if err != nil {
				t.Fatal(err)
			}
			if show(got) != c.want {
				t.Errorf("got  %s\nwant %s", show(got), c.want)
			}
			if err := got.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHostileEntriesAreRefused(t *testing.T) {
	for _, in := range []string{
		"reg .. 1", "reg a/../b 1", "reg ../a 1", "link a ..", "link a b/../c", "reg / 1", "sym . x", "link a /",
		"sym a x; reg a/b 1", "reg a 1; dir a/b", "reg a 1; reg a/.wh.b 0", "fifo a; reg a/.wh..wh..opq 0",
		"link a x; reg a/b 1", "dir a; sym a/b x; reg a/b/c 1",
		"reg .wh. 1", "reg a/.wh... 1", "reg a/.wh.. 1",
		"dir a; link b a", "link b a; dir a", "link b a/b; reg a/b/c 1; dir a/b",
		"link a b; link b a", "link x a; link a b; link b c; link c a", "link a a",
		"reg a -1", "reg " + strings.Repeat("n", 256) + " 1", "reg " + strings.Repeat("n/", 2100) + " 1",
		"reg a\x00b 1", "sym a b\x00", "sym a " + strings.Repeat("x", 4096),
	} {
		if got, err := build(parse(t, in)); !errors.Is(err, toc.ErrInvalid) {
			t.Errorf("%.60q: %v, %v", in, got, err)
		}
	}
	many := "reg a 17592186044416; reg b 17592186044416"
	if got, err := build(parse(t, many)); !errors.Is(err, toc.ErrLimit) {
		t.Errorf("%s: %v, %v", many, got, err)
	}
	if _, err := build(parse(t, "reg a 9223372036854775807")); !errors.Is(err, toc.ErrLimit) {
		t.Errorf("largest size: %v", err)
	}
}

func TestRefusalsNameTheSymlink(t *testing.T) {
	_, err := build(parse(t, "dir a; sym a/b ../x; reg a/b/c/d 1"))
	if want := `"a/b/c/d" lies below "a/b", which is a symlink to "../x": invalid layer`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// entry is one regular file of 100 bytes with whatever set does to it.
func entry(set func(*toc.Entry)) toc.Entry {
	e := toc.Entry{Name: "a", Type: toc.Regular, Size: 100}
	set(&e)
	return e
}

func TestHostileMetadataIsRefused(t *testing.T) {
	chunk := func(off, n, blobOff, blobLen, inner int64) toc.Chunk {
		return toc.Chunk{Off: off, Len: n, BlobOff: blobOff, BlobLen: blobLen, Inner: inner, Codec: toc.Gzip}
	}
	chunks := func(c ...toc.Chunk) toc.Entry { return entry(func(e *toc.Entry) { e.Chunks = c }) }
	const huge = 1<<63 - 1
	for name, c := range map[string]struct {
		e    toc.Entry
		want error
	}{
		"no type":          {entry(func(e *toc.Entry) { e.Type = 0 }), toc.ErrInvalid},
		"unknown type":     {entry(func(e *toc.Entry) { e.Type = 11 }), toc.ErrInvalid},
		"replaced":         {entry(func(e *toc.Entry) { e.Type = toc.Replaced }), toc.ErrInvalid},
		"empty name":       {entry(func(e *toc.Entry) { e.Name = "" }), toc.ErrInvalid},
		"type bits":        {entry(func(e *toc.Entry) { e.Mode = 0o100644 }), toc.ErrInvalid},
		"nanoseconds":      {entry(func(e *toc.Entry) { e.Nsec = 1e9 }), toc.ErrInvalid},
		"device of a file": {entry(func(e *toc.Entry) { e.Major = 1 }), toc.ErrInvalid},
		"large minor":      {toc.Entry{Name: "a", Type: toc.Char, Minor: 1 << 20}, toc.ErrInvalid},
		"sized directory":  {toc.Entry{Name: "a", Type: toc.Directory, Size: 1}, toc.ErrInvalid},
		"no target":        {toc.Entry{Name: "a", Type: toc.Symlink}, toc.ErrInvalid},
		"nameless xattr":   {entry(func(e *toc.Entry) { e.Xattrs = []toc.Xattr{{"", "x"}} }), toc.ErrInvalid},
		"large xattr":      {entry(func(e *toc.Entry) { e.Xattrs = []toc.Xattr{{"user.x", strings.Repeat("v", 65537)}} }), toc.ErrLimit},
		"many xattrs": {entry(func(e *toc.Entry) {
			for i := range 300 {
				e.Xattrs = append(e.Xattrs, toc.Xattr{Name: fmt.Sprintf("user.%0240d", i)})
			}
		}), toc.ErrLimit},

		"chunk past the file": {chunks(chunk(0, 101, 0, 10, 0)), toc.ErrInvalid},
		"overlap":             {chunks(chunk(0, 60, 0, 10, 0), chunk(50, 50, 10, 10, 0)), toc.ErrInvalid},
		"order":               {chunks(chunk(50, 50, 0, 10, 0), chunk(0, 50, 10, 10, 0)), toc.ErrInvalid},
		"empty chunk":         {chunks(chunk(0, 0, 0, 10, 0)), toc.ErrInvalid},
		"negative chunk":      {chunks(chunk(-1, 2, 0, 10, 0)), toc.ErrInvalid},
		"huge chunk":          {chunks(chunk(1, huge, 0, 10, 0)), toc.ErrInvalid},
		"past the blob":       {chunks(chunk(0, 100, 1<<40-5, 10, 0)), toc.ErrInvalid},
		"overflow":            {chunks(chunk(0, 100, huge-5, 10, 0)), toc.ErrInvalid},
		"negative range":      {chunks(chunk(0, 100, -1, 10, 0)), toc.ErrInvalid},
		"empty range":         {chunks(chunk(0, 100, 1, 0, 0)), toc.ErrInvalid},
		"inner overflow":      {chunks(chunk(0, 100, 1, 10, huge)), toc.ErrInvalid},
		"ranges overlap":      {chunks(chunk(0, 50, 1, 10, 0), chunk(50, 50, 5, 10, 0)), toc.ErrInvalid},
		"codec":               {chunks(toc.Chunk{Len: 100, BlobLen: 10, Codec: 9}), toc.ErrInvalid},
		"stored":              {chunks(toc.Chunk{Len: 100, BlobLen: 99, Codec: toc.Stored}), toc.ErrInvalid},
		"digest":              {chunks(toc.Chunk{Len: 100, BlobLen: 9, Codec: toc.Gzip, Digest: "sha256:XYZ"}), toc.ErrInvalid},
	} {
		if got, err := build([]toc.Entry{c.e}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	good := chunks(chunk(0, 50, 1, 10, 0), chunk(60, 40, 1, 10, 50))
	if _, err := build([]toc.Entry{good}); err != nil {
		t.Errorf("two chunks of one range, with a hole between: %v", err)
	}
}

func TestXattrsAreSortedAndLastWins(t *testing.T) {
	got, err := build([]toc.Entry{entry(func(e *toc.Entry) {
		e.Xattrs = []toc.Xattr{{"user.b", "1"}, {"user.a", "2"}, {"user.b", "3"}}
	})})
	if err != nil {
		t.Fatal(err)
	}
	if want := []toc.Xattr{{"user.a", "2"}, {"user.b", "3"}}; !slices.Equal(got.Entries[0].Xattrs, want) {
		t.Errorf("%v", got.Entries[0].Xattrs)
	}
}

func TestCountsAreBounded(t *testing.T) {
	dir := func(name string) func(*toc.Builder, int) error {
		return func(b *toc.Builder, i int) error {
			_, err := b.Add(toc.Entry{Name: fmt.Sprint(i) + name, Type: toc.Directory})
			return err
		}
	}
	for name, add := range map[string]func(*toc.Builder, int) error{
		"entries":     dir(""),
		"directories": dir(strings.Repeat("/d", 10)), // that the paths imply
		"chunks": func(b *toc.Builder, i int) error {
			if i > 0 {
				return b.AddChunk(0, toc.Chunk{Off: int64(i), Len: 1, BlobLen: 1, Codec: toc.Gzip})
			}
			_, err := b.Add(toc.Entry{Name: "f", Type: toc.Regular, Size: 1 << 20})
			return err
		},
	} {
		b := toc.NewBuilder(0)
		b.SetLimit(1000)
		added := 0
		var err error
		for ; err == nil && added < 1100; added++ {
			err = add(b, added)
		}
		if !errors.Is(err, toc.ErrLimit) || (name != "directories" && added < 1000) || (name == "directories" && added > 102) {
			t.Errorf("%s: %v after %d", name, err, added)
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	b := toc.NewBuilder(0)
	value := strings.Repeat("v", toc.MaxXattr)
	e := toc.Entry{Type: toc.Fifo}
	for i := range 16 {
		e.Xattrs = append(e.Xattrs, toc.Xattr{Name: fmt.Sprintf("user.%02d", i), Value: value})
	}
	var err error
	added := 0
	for ; err == nil && added < 600; added++ {
		e.Name = fmt.Sprint(added)
		_, err = b.Add(e)
	}
	if !errors.Is(err, toc.ErrLimit) || added < 500 {
		t.Errorf("%v after %d MiB", err, added)
	}
}
