package image

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// An image that is converted twice is mounted by the tables of contents that its layers
// have now.
func TestConvertedTwiceAndMounted(t *testing.T) {
	formats := map[string]string{"estargz": "estargz", "zstdchunked": "zstd:chunked"}
	for _, c := range [][2]string{{"zstdchunked", "estargz"}, {"estargz", "zstdchunked"}} {
		t.Run(c[0]+" to "+c[1], func(t *testing.T) {
			r := ocitest.New(t)
			m := start(t, "")
			image := formatOf("gzip").packAll(t, stormTars(t, 4)...)
			ref := image.push(t, r)
			m.Lacuna("convert", "--to", c[0], "--push", ref)
			m.Lacuna("convert", "--to", c[1], "--push", "--tag", "twice", ref+"-"+c[0])
			dir := m.mount(ref[:strings.LastIndexByte(ref, ':')]+":twice", "mnt")
			for _, f := range m.formatsOf() {
				if f != formats[c[1]] {
					t.Errorf("layer is %s", f)
				}
			}
			image.format = formatOf(c[1])
			compare(t, dir, image.tree(t))
			m.umount(dir)
		})
	}
}

// The largest spans that index makes are ones that a mount reads.
func TestLargestSpansAreRead(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	image := formatOf("gzip").packAll(t, tarOf(t, file("a", strings.Repeat("data ", 3<<20)), file("b", string(toctest.Random(1, 40<<20)))))
	ref := image.push(t, r)
	if out, err := m.Try("index", "--push", "--span-size", "32MiB", "--min-layer-size", "0B", ref); err == nil {
		t.Errorf("spans of 32 MiB: %s", out)
	}
	m.Lacuna("index", "--push", "--span-size", "12MiB", "--min-layer-size", "0B", ref)
	dir := m.mount(ref+"-soci", "mnt")
	for _, f := range m.formatsOf() {
		if f != "soci v2" {
			t.Errorf("layer is %s", f)
		}
	}
	compare(t, dir, image.tree(t))
	m.umount(dir)
	// An index into a layout without a tag names one image.
	out := filepath.Join(m.Dir, "out")
	m.Lacuna("index", "--v1", "--output", "oci-layout:"+out, "--min-layer-size", "0B", ref)
	dir = m.mount("oci-layout:"+out, "mnt")
	compare(t, dir, image.tree(t))
	m.umount(dir)
}
