package image

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// Two images with a layer in common are one device there, which is served for as
// long as one of them is mounted.
func TestImagesShareALayer(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			r1, r2 := ocitest.New(t), ocitest.New(t)
			m := start(t, "")
			lower := tortureLower(t, f, 100)
			one := f.packAll(t, lower, tarOf(t, file("one", "1")))
			two := f.packAll(t, lower, tarOf(t, file("two", "2")))
			tree1, tree2 := one.tree(t), two.tree(t)
			dir1 := m.mount(one.push(t, r1), "one")
			dir2 := m.mount(two.push(t, r2), "two")
			m.umount(dir1)
			compare(t, dir2, tree2)
			dir1 = m.mount(r1.Host()+"/image:"+f.name, "one")
			m.umount(dir2)
			compare(t, dir1, tree1)
			// Other names of one image.
			for n, ref := range []string{r1.Push(t, "image:other", one.Image), r2.Push(t, "elsewhere:v1", one.Image)} {
				dir := m.mount(ref, []string{"three", "four"}[n])
				compare(t, dir, tree1)
			}
		})
	}
}

// An image may have a layer twice, as builds that do nothing twice make it.
func TestLayerTwice(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			same := tarOf(t, file("a", "data"), file("b", "more data"), whiteout("c"))
			image := f.packAll(t, same, tarOf(t, file("c", "x"), file("a", "other")), same)
			m.wantSame(image.push(t, r), image.tree(t))
		})
	}
}

// Layers without data, and images without layers.
func TestImageWithoutData(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := f.packAll(t, tarOf(t), tarOf(t, dir("a/"), symlink("b", "a"), file("empty", "")))
			m.wantSame(image.push(t, r), image.tree(t))
		})
	}
	t.Run("no layers", func(t *testing.T) {
		m := &mounted{m.For(t), t}
		image := &packed{format: format{name: "none"}}
		image.build(t)
		m.wantSame(image.push(t, r), image.tree(t))
	})
}
