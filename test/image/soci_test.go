package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// raw is a manifest as it is pushed.
type raw struct {
	data []byte
	kind string
}

func (r raw) RawManifest() ([]byte, error)           { return r.data, nil }
func (r raw) MediaType() (types.MediaType, error)    { return types.MediaType(r.kind), nil }
func (r raw) digest() digest.Digest                  { return digest.FromBytes(r.data) }
func (r raw) in(repo name.Repository) name.Reference { return repo.Digest(r.digest().String()) }

// index pushes zTOCs of the image's layers, of spans of the size, and an index that
// lists them, beside the image that ref names. It returns what to mount.
func (p *packed) index(t testing.TB, ref string, version int, spanSize int64) string {
	t.Helper()
	at, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo := at.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	push := func(data []byte) { must(remote.WriteLayer(repo, static.NewLayer(data, types.OCILayer))) }
	manifest, err := p.RawManifest()
	must(err)
	x := &soci.Index{Version: version, Tool: "test"}
	for _, l := range p.layers {
		z, err := soci.Build(t.Context(), bytes.NewReader(l.blob), soci.BuildOptions{SpanSize: spanSize, Tool: "test"})
		if errors.Is(err, toc.ErrNotFormat) {
			continue // it has sparse files
		}
		must(err)
		if p.lie != nil {
			z = changed(t, z, int64(len(l.blob)), p.lie)
		}
		p.ztocs = append(p.ztocs, z)
		push(z)
		layer, err := l.Digest()
		must(err)
		x.Layers = append(x.Layers, soci.LayerZtoc{
			Layer: digest.Digest(layer.String()), MediaType: string(l.mediaType),
			Ztoc: digest.FromBytes(z), Size: int64(len(z)), SpanSize: spanSize,
		})
	}
	push(soci.EmptyConfig())
	image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	if version == 1 {
		x.Subject = &image
	}
	data, err := x.Marshal()
	must(err)
	m := raw{data, ocispec.MediaTypeImageManifest}
	must(remote.Put(m.in(repo), m))
	if version == 1 {
		return ref
	}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	image.Platform = &platform
	index, manifests, err := soci.Enable(ocispec.Index{Manifests: []ocispec.Descriptor{image}},
		func(ocispec.Descriptor) ([]byte, error) { return manifest, nil },
		[]soci.Made{{Manifest: image.Digest, Platform: platform, Descriptor: x.Descriptor(data)}})
	must(err)
	for _, data := range manifests {
		m := raw{data, ocispec.MediaTypeImageManifest}
		must(remote.Put(m.in(repo), m))
	}
	tag := repo.Tag(strings.ReplaceAll(at.Identifier(), "soci", "indexed"))
	must(remote.Put(tag, raw{index, ocispec.MediaTypeImageIndex}))
	return tag.String()
}

// Layers are read by their zTOCs, and only what is read of them is fetched.
func TestIndexedImage(t *testing.T) {
	for _, f := range []format{formatOf("soci1"), formatOf("soci2")} {
		t.Run(f.name, func(t *testing.T) {
			r := ocitest.New(t)
			m := start(t, "")
			image := f.packAll(t, stormTars(t, 32)...)
			ref := image.push(t, r)
			dir := m.mount(ref, "mnt")
			for _, l := range m.Status().Mounted[0].Layers {
				if l.Format != "soci v"+f.name[4:] {
					t.Errorf("layer is %s", l.Format)
				}
			}
			compare(t, dir, image.tree(t))
			m.umount(dir)
		})
	}
}

// An index that is not what its digest says, though the registry sends it, gives no
// byte, and nothing that was made by it stays.
func TestIndexWithAnotherDigest(t *testing.T) {
	for _, f := range []format{formatOf("soci1"), formatOf("soci2")} {
		t.Run(f.name, func(t *testing.T) { indexWithAnotherDigest(t, f) })
	}
}

func indexWithAnotherDigest(t *testing.T, f format) {
	t.Helper()
	r := ocitest.New(t)
	m := start(t, "")
	image := f.packAll(t, stormTars(t, 4)[0])
	ref := image.push(t, r)
	for _, z := range image.ztocs {
		wrong := bytes.Clone(z)
		for at := len(z) / 4; at < len(z)/2; at += 4096 {
			wrong[at] ^= 0x20 // in windows
		}
		r.Blob(z, serve(wrong))
	}
	dir := m.mount(ref, "mnt")
	tree := image.tree(t)
	var failed int
	for _, f := range filesOf(tree) {
		if _, err := os.ReadFile(filepath.Join(dir, f.Path)); err == nil && f.Size > 0 {
			t.Errorf("%s was read", f.Path)
		} else if errors.Is(err, syscall.EIO) {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing was refused")
	}
	for _, l := range m.Status().Mounted[0].Layers {
		if l.Present > 0 {
			t.Errorf("%d bytes of a layer are present", l.Present)
		}
	}
	m.umount(dir)
	// The next mount asks anew.
	for _, z := range image.ztocs {
		r.Blob(z, serve(z))
	}
	dir = m.mount(ref, "mnt")
	compare(t, dir, tree)
	m.umount(dir)
}

// What was read of an indexed image is there without its registry, as is its index.
func TestIndexedImageWithoutRegistry(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "deadline = \"5s\"\n")
	image := formatOf("soci1").packAll(t, stormTars(t, 4)...)
	ref := image.push(t, r)
	dir := m.mount(ref, "mnt")
	tree := image.tree(t)
	compare(t, dir, tree)
	m.umount(dir)
	r.Stop()
	dir = m.mount(ref, "mnt")
	compare(t, dir, tree)
	m.umount(dir)
}

// An index that is damaged where it is kept is fetched anew.
func TestKeptIndexIsDamaged(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	image := formatOf("soci2").packAll(t, stormTars(t, 4)[0])
	ref := image.push(t, r)
	tree := image.tree(t)
	first := filesOf(tree)[0].Path
	for name, damage := range map[string]func(z []byte) []byte{
		"a bit":     func(z []byte) []byte { z[len(z)/2] ^= 1; return z },
		"truncated": func(z []byte) []byte { return z[:len(z)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			dir := m.mount(ref, "mnt")
			if _, err := os.ReadFile(filepath.Join(dir, first)); err != nil {
				t.Fatal(err)
			}
			m.umount(dir)
			kept, err := filepath.Glob(filepath.Join(m.Root, "layers", "*.ztoc"))
			if err != nil || len(kept) != 1 {
				t.Fatalf("kept: %v, %v", kept, err)
			}
			z, err := os.ReadFile(kept[0])
			if err == nil {
				err = os.WriteFile(kept[0], damage(z), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			objects, err := filepath.Glob(filepath.Join(m.Root, "objects", "*", "*"))
			if err != nil || len(objects) == 0 {
				t.Fatalf("objects: %v, %v", objects, err)
			}
			for _, path := range objects { // or nothing would be decoded again
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}
