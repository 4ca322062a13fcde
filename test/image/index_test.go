package image

import (
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// formatsOf are the formats of a mounted image's layers.
func (m *mounted) formatsOf() (list []string) {
	for _, l := range m.Status().Mounted[0].Layers {
		list = append(list, l.Format)
	}
	return list
}

// An index that the program makes is one that it mounts by.
func TestIndexMadeAndMounted(t *testing.T) {
	for version, args := range map[string][]string{
		"2": {"--push"},
		"1": {"--v1", "--push"},
	} {
		t.Run("v"+version, func(t *testing.T) {
			r := ocitest.New(t)
			m := start(t, "")
			image := formatOf("gzip").packAll(t, stormTars(t, 8)...)
			ref := image.push(t, r)
			m.Lacuna(append(append([]string{"index", "--min-layer-size", "0B", "--span-size", "64KiB"}, args...), ref)...)
			if version == "2" {
				ref += "-soci"
			}
			dir := m.mount(ref, "mnt")
			for _, f := range m.formatsOf() {
				if f != "soci v"+version {
					t.Errorf("layer is %s", f)
				}
			}
			compare(t, dir, image.tree(t))
			m.umount(dir)
			if out := m.Lacuna("index", "info", ref); !strings.Contains(out, "index v"+version+", made by Lacuna 1\n") || strings.Count(out, "zTOC sha256:") != 2 {
				t.Errorf("info says:\n%s", out)
			}
			if out := m.Lacuna("index", "ls", ref); !strings.Contains(out, " 4096 2023-11-14 ") || !strings.Contains(out, "layer1/file0001") {
				t.Errorf("ls says:\n%.500s", out)
			}
			want := toctest.Random(10_001, 4096)
			if out := m.Lacuna("index", "cat", ref, "layer1/file0001"); out != string(want) {
				t.Errorf("cat says %d bytes, want %d", len(out), len(want))
			}
			if n := r.Count(func(q ocitest.Request) bool { return q.Method == "PUT" && strings.Contains(q.Path, "/blobs/") }); n == 0 {
				t.Error("no zTOC was pushed")
			}
		})
	}
}

// A converted image is the same tree, and is mounted by its layers' own tables.
func TestConvertedAndMounted(t *testing.T) {
	for to, format := range map[string]string{"estargz": "estargz", "zstdchunked": "zstd:chunked"} {
		t.Run(to, func(t *testing.T) {
			r := ocitest.New(t)
			m := start(t, "")
			image := formatOf("gzip").packAll(t, stormTars(t, 8)...)
			ref := image.push(t, r)
			m.Lacuna("convert", "--to", to, "--push", ref)
			dir := m.mount(ref+"-"+to, "mnt")
			for _, f := range m.formatsOf() {
				if f != format {
					t.Errorf("layer is %s", f)
				}
			}
			image.format = formatOf(to)
			compare(t, dir, image.tree(t))
			m.umount(dir)
		})
	}
}
