package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/lacunafs/lacuna/test/instance"
)

// A layer's file goes away: what was read of it is mounted again without it, the rest is
// an error for as long as it is away.
func TestLayerOfALayoutGoesAndComesBack(t *testing.T) {
	for _, f := range []string{"estargz", "zstdchunked"} {
		t.Run(f, func(t *testing.T) {
			m := start(t, "deadline = \"1s\"\n")
			image := formatOf(f).packAll(t, tarOf(t, faultMembers(9)...))
			tree := image.tree(t)
			files := filesOf(tree)
			at := filepath.Join(m.Dir, "layout")
			path, err := layout.Write(at, empty.Index)
			if err == nil {
				err = path.AppendImage(image.Image)
			}
			if err != nil {
				t.Fatal(err)
			}
			dir := m.mount("oci-layout:"+at, "mnt")
			sum := readOnce(t, dir, files[:3], 1)
			sum.wantRight(t)
			m.umount(dir)
			blob := filepath.Join(at, "blobs", "sha256", mustDigest(t, image.layers[0]))
			if err := os.Rename(blob, blob+".away"); err != nil {
				t.Fatal(err)
			}
			dir = m.mount("oci-layout:"+at, "mnt")
			sum = readOnce(t, dir, files[:3], 1)
			sum.wantRight(t)
			if sum := readOnce(t, dir, files, 2); sum.EIO == 0 || sum.Wrong+sum.Other > 0 {
				t.Errorf("%s %q", sum.String(), sum.Examples)
			}
			if err := os.Rename(blob+".away", blob); err != nil {
				t.Fatal(err)
			}
			instance.Eventually(t, 30*time.Second, func() error {
				if sum := readOnce(t, dir, files, 2); sum.EIO+sum.Wrong+sum.Other > 0 {
					return fmt.Errorf("%s %q", sum.String(), sum.Examples)
				}
				return nil
			})
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

func mustDigest(t *testing.T, l *layer) string {
	t.Helper()
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.Hex
}
