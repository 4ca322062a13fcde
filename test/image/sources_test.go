package image

import (
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// smallTars are the layers of a small image.
func smallTars(t testing.TB, f format) [][]byte {
	return [][]byte{tortureLower(t, f, 100), tortureUpper(t), tortureThird(t)}
}

func TestRealRegistry(t *testing.T) {
	host := ocitest.Real(t, "")
	m := start(t, "")
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := f.packAll(t, smallTars(t, f)...)
			ref := host + "/some/image:" + f.name
			ocitest.Push(t, ref, image.Image, authn.Anonymous)
			m.wantSame(ref, image.tree(t))
		})
	}
}

func TestLayoutAndArchive(t *testing.T) {
	m := start(t, "")
	for _, f := range formats {
		image := f.packAll(t, smallTars(t, f)...)
		want := image.tree(t)
		t.Run("layout/"+f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			dir := filepath.Join(m.Dir, "layout-"+f.name)
			path, err := layout.Write(dir, empty.Index)
			if err == nil {
				err = path.AppendImage(image.Image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"}))
			}
			if err != nil {
				t.Fatal(err)
			}
			m.wantSame("oci-layout:"+dir, want)
			m.wantSame("oci-layout:"+dir+":v1", want)
		})
		t.Run("archive/"+f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			file := filepath.Join(m.Dir, f.name+".tar")
			tag, err := name.NewTag("example/app:v1")
			if err == nil {
				err = tarball.WriteToFile(file, tag, image.Image)
			}
			if err != nil {
				t.Fatal(err)
			}
			m.wantSame("docker-archive:"+file, want)
			m.wantSame("docker-archive:"+file+":example/app:v1", want)
		})
	}
}
