package image

import (
	"slices"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

// Without a wish the best is taken, with one what is wished for or nothing: the message
// says what there is.
func TestFormatIsForced(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	tars := stormTars(t, 4)
	both := formatOf("soci1").packAll(t, tars...) // two layers
	both.push(t, r)
	both.format = formatOf("soci2")
	indexed := both.index(t, r.Host()+"/image:soci1", 2, 64<<10)
	// The index of version 1 refers to the image, that of version 2 makes another one.
	v1 := r.Host() + "/image:soci1"
	stargz := formatOf("estargz").packAll(t, tars...).push(t, r)
	chunked := formatOf("zstdchunked").packAll(t, tars...).push(t, r)
	plain := formatOf("gzip").packAll(t, tars[0]).push(t, r)
	for _, c := range []struct{ ref, wish, formats, refused string }{
		{v1, "", "soci v1", ""}, {v1, "soci", "soci v1", ""}, {v1, "soci-v1", "soci v1", ""},
		{indexed, "", "soci v2", ""}, {indexed, "soci", "soci v2", ""}, {indexed, "soci-v2", "soci v2", ""},
		{v1, "scanned", "scanned", ""}, {v1, "", "soci v1", ""}, {indexed, "", "soci v2", ""}, // again
		{v1, "soci-v2", "", "format soci-v2 is asked for, and no layer has it; layers are: 1 to 2 soci v1"},
		{v1, "estargz", "", "no layer has it; layers are: 1 to 2 soci v1"},
		{v1, "zstdchunked", "", "no layer has it; layers are: 1 to 2 soci v1"},
		{stargz, "", "estargz", ""}, {stargz, "estargz", "estargz", ""}, {stargz, "scanned", "scanned", ""},
		{stargz, "soci", "", "no layer has it; layers are: 1 to 2 estargz"},
		{stargz, "zstdchunked", "", "no layer has it; layers are: 1 to 2 estargz"},
		{chunked, "", "zstd:chunked", ""}, {chunked, "zstdchunked", "zstd:chunked", ""},
		{chunked, "estargz", "", "no layer has it; layers are: 1 to 2 zstd:chunked"},
		{plain, "", "scanned", ""}, {plain, "scanned", "scanned", ""},
		{plain, "soci-v1", "", "no layer has it; layers are: 1 without an index"},
	} {
		t.Run(strings.ReplaceAll(c.ref, "/", "_")+" as "+c.wish, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			dir := m.Dir + "/mnt"
			_, err := m.Try(mountAs(c.wish, c.ref, dir)...)
			if c.refused != "" {
				if instance.ExitOf(err) != 5 || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "hint: leave --format out") {
					t.Errorf("%v, want %q", err, c.refused)
				}
				m.wantNothing(dir)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Compact(m.formatsOf())
			if len(got) != 1 || got[0] != c.formats {
				t.Errorf("layers are %q", got)
			}
			m.umount(dir)
		})
	}
}

// What was mounted as it was wished is mounted so again without its registry, and
// nothing else is for it.
func TestFormatIsForcedOffline(t *testing.T) {
	registry, r := newFaulty(t)
	m := start(t, "")
	ref := formatOf("soci1").packAll(t, stormTars(t, 4)...).push(t, r)
	dir := m.Dir + "/mnt"
	for _, wish := range []string{"scanned", "soci"} {
		m.Lacuna("mount", "--format", wish, ref, dir)
		m.umount(dir)
	}
	registry.set(func() { registry.down = true })
	for wish, want := range map[string]string{"scanned": "scanned", "soci": "soci v1"} {
		m.Lacuna("mount", "--format", wish, ref, dir)
		if got := m.formatsOf(); !slices.Equal(got, []string{want, want}) {
			t.Errorf("layers are %q", got)
		}
		m.umount(dir)
	}
	for _, wish := range []string{"soci-v1", ""} {
		if _, err := m.Try(mountAs(wish, ref, dir)...); instance.ExitOf(err) != 5 {
			t.Errorf("as %q: %v", wish, err)
		}
	}
}

// A registry without ranges has nothing but whole layers.
func TestFormatWithoutRanges(t *testing.T) {
	registry, r := newFaulty(t)
	m := start(t, "")
	dir := m.Dir + "/mnt"
	registry.set(func() { registry.every = []fault{whole} })
	for _, f := range []string{"estargz", "soci2"} {
		ref := formatOf(f).packAll(t, stormTars(t, 4)...).push(t, r)
		_, err := m.Try("mount", "--format", strings.TrimRight(f, "2"), ref, dir)
		if instance.ExitOf(err) != 5 || !strings.Contains(err.Error(), "; layers are: 1 to 2 in a registry without ranges") {
			t.Errorf("as %s: %v", f, err)
		}
		m.wantNothing(dir)
	}
}

// Layers that an index leaves out are scanned, whatever is wished for.
func TestFormatOfLayersThatAreNotListed(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	ref := formatOf("gzip").packAll(t, tarOf(t, file("small", "small")), stormTars(t, 64)[0]).push(t, r)
	m.Lacuna("index", "--min-layer-size", "10KiB", "--push", ref)
	dir := m.Dir + "/mnt"
	for _, wish := range []string{"soci", "soci-v2"} {
		m.Lacuna("mount", "--format", wish, ref+"-soci", dir)
		if got := m.formatsOf(); !slices.Equal(got, []string{"scanned", "soci v2"}) {
			t.Errorf("layers are %q", got)
		}
		m.umount(dir)
	}
}

// mountAs is the command that mounts an image as it is wished; empty: as it comes.
func mountAs(wish, ref, dir string) []string {
	args := []string{"mount", ref, dir}
	if wish != "" {
		args = append(args, "--format", wish)
	}
	return args
}
