package image

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// common is two images in two registries with a large layer in common. Both are
// mounted, and a part of the layer is read through the first.
type common struct {
	*mounted
	first, second *ocitest.Registry
	dirs          [2]string
	trees         [2]*node
	files         []readable // of the layer
}

func newCommon(t *testing.T) *common {
	t.Helper()
	f := formatOf("estargz")
	c := &common{mounted: start(t, "deadline = \"30s\"\n"), first: ocitest.New(t), second: ocitest.New(t)}
	members := []member{dir("data/")}
	for n := range 40 {
		members = append(members, file(fmt.Sprintf("data/%02d", n), string(toctest.Random(uint64(n), 300_000))))
	}
	lower := tarOf(t, members...)
	one := f.packAll(t, lower, tarOf(t, file("one", "1")))
	two := f.packAll(t, lower, tarOf(t, file("two", "2")))
	c.trees = [2]*node{one.tree(t), two.tree(t)}
	c.dirs = [2]string{c.mount(one.push(t, c.first), "one"), c.mount(two.push(t, c.second), "two")}
	for _, r := range filesOf(c.trees[0]) {
		if r.Path != "one" {
			c.files = append(c.files, r)
		}
	}
	asked := c.second.Count(isRange)
	sum := readOnce(t, c.dirs[0], c.files[:4], 1)
	sum.wantRight(t)
	if n := c.second.Count(isRange) - asked; n > 0 {
		t.Errorf("the second registry was asked %d times while the first answered", n)
	}
	return c
}

func isRange(q ocitest.Request) bool {
	return q.Server == "registry" && q.Method == "GET" && q.Header.Get("Range") != ""
}

// A layer that two images have is read through either registry, whatever becomes of
// the other: it goes away, refuses, has lost it, its image is unmounted, the worker
// dies or is upgraded.
func TestLayerIsReadThroughTheOtherImage(t *testing.T) {
	umountFirst := func(c *common) {
		c.umount(c.dirs[0])
		c.dirs[0] = ""
	}
	for name, trouble := range map[string]func(*common){
		"gone": func(c *common) { c.first.Stop() },
		"403":  func(c *common) { c.first.Deny(1 << 30) },
		"401":  func(c *common) { c.first.WantToken("somebody", "else") },
		"404":  func(c *common) { c.first.LoseBlobs() },
		"killed": func(c *common) {
			worker := c.WaitWorker(0)
			c.Kill(worker)
			c.WaitWorker(worker)
			c.first.Stop()
		},
		"gone before an upgrade": func(c *common) {
			c.first.Stop()
			c.upgrade()
		},
		"unmounted": func(c *common) {
			umountFirst(c)
			c.first.Stop()
		},
		"unmounted, and the worker killed": func(c *common) {
			umountFirst(c)
			c.first.Stop()
			worker := c.WaitWorker(0)
			c.Kill(worker)
			c.WaitWorker(worker)
		},
		"the second is gone": func(c *common) { c.second.Stop() },
		"the second is unmounted": func(c *common) {
			c.umount(c.dirs[1])
			c.dirs[1] = ""
			c.second.Stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCommon(t)
			trouble(c)
			for n, dir := range c.dirs {
				if dir == "" {
					continue
				}
				sum := readOnce(t, dir, c.files[n*20:], 8)
				sum.wantRight(t)
				if sum.Slowest > 20*time.Second {
					t.Errorf("a read took %v", sum.Slowest)
				}
			}
			c.Stop()
			c.WaitEnd(0)
		})
	}
}

// While data of the layer is being read its first image is unmounted, again and again.
func TestImagesOfALayerComeAndGo(t *testing.T) {
	c := newCommon(t)
	ref := c.first.Host() + "/image:estargz"
	r := startReaders(t, order{Dir: c.dirs[1], Files: c.files, Readers: 4, Seed: 1, Once: true})
	for range 5 {
		c.umount(c.dirs[0])
		c.dirs[0] = c.mount(ref, "one")
	}
	sum := r.wait(3 * time.Minute)
	sum.wantRight(t)
	if _, err := os.Lstat(c.dirs[0] + "/one"); err != nil {
		t.Error(err)
	}
}
