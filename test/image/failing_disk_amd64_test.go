package image

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// The nth write, sync, rename or the like that the worker does in the cache fails, or all
// from there on, for every n, while an image is mounted, read and unmounted: what is read is right or an
// error that status explains, a mount that fails leaves nothing, and afterwards, also in
// the next worker, all is right.
func TestEachWriteToTheCacheFails(t *testing.T) {
	for _, name := range failingFormats {
		t.Run(name, func(t *testing.T) {
			m := start(t, "")
			r := ocitest.New(t)
			sum := failingSum{t: t, what: make(map[string]int)}
			for _, on := range []bool{false, true} {
				for n := 1; m.failsAt(r, name, n, on, &sum); n += failingStep {
					if n > 2000 {
						t.Fatal("there is no end")
					}
				}
			}
			t.Logf("%d of %d operations failed: %v; %d mounts failed, %d files gave EIO", sum.failed, sum.seen, sum.what, sum.mounts, sum.eio)
			if sum.failed == 0 || sum.eio == 0 {
				t.Error("nothing that readers notice has failed")
			}
			m.Lacuna("check", "--verify")
		})
	}
}

// failingSum is what has failed.
type failingSum struct {
	t                         *testing.T
	failed, seen, mounts, eio int
	what                      map[string]int // by the name of the call
}

// failsAt is one n. It tells whether there were so many operations.
func (m *mounted) failsAt(r *ocitest.Registry, name string, n int, on bool, sum *failingSum) bool {
	t := sum.t
	t.Helper()
	seed := uint64(n)
	if on {
		seed += 100_000
	}
	var members []member
	for k, size := range []int{100, 70_000, 200_001, 0, 12_345} {
		members = append(members, file(fmt.Sprintf("%d/file%d", n, k), string(toctest.Random(seed*10+uint64(k), size))))
	}
	image := formatOf(name).packAll(t, tarOf(t, members...), tarOf(t, file("other", fmt.Sprint(n, on))))
	ref, tree := image.push(t, r), image.tree(t)
	files, dir := filesOf(tree), filepath.Join(m.Dir, "mnt")
	errno := []syscall.Errno{syscall.EIO, syscall.ENOSPC}[n/failingStep%2]
	worker := m.WaitWorker(0)
	f, done := failNth(t, worker, m.Root, n, on, errno)
	_, err := m.Try("mount", ref, dir)
	var read tally
	if err == nil {
		read = readOnce(t, dir, files, 4)
		// Half of what is read is unmounted by the worker whose disk has failed, and half
		// is gone on with by the next one.
		if n/failingStep%4 < 2 {
			m.umount(dir)
		}
	}
	status, statusErr := m.Try("status")
	done()
	what := fmt.Sprintf("operation %d (all from there on: %t), %s: %v", n, on, f.what, errno)
	switch {
	case f.what == "" && (err != nil || read.EIO > 0):
		t.Errorf("with no failure: mount %v, %s", err, read.String())
	case err != nil:
		sum.mounts++
		if instance.ExitOf(err) != int(control.ExitError) || !strings.Contains(err.Error(), errno.Error()) {
			t.Errorf("%s: mount: %v", what, err)
		}
		m.wantNothing(dir)
	case read.Wrong+read.Other > 0:
		t.Errorf("%s: %s %q", what, read.String(), read.Examples)
	case read.EIO > 0:
		sum.eio += int(read.EIO)
		if statusErr != nil || !strings.Contains(status, errno.Error()) {
			t.Errorf("%s: status does not say why: %v\n%s", what, statusErr, status)
		}
	}
	if n/failingStep%4 >= 2 {
		m.Kill(worker)
		m.WaitWorker(worker)
		m.WaitReady()
	}
	if points := instance.MountsBelow(dir); len(points) == 0 {
		m.Lacuna("mount", ref, dir)
	}
	instance.Eventually(t, 30*time.Second, func() error {
		if sum := readOnce(t, dir, files, 2); sum.EIO+sum.Other > 0 {
			return fmt.Errorf("%s: %s %q", what, sum.String(), sum.Examples)
		}
		return nil
	})
	compare(t, dir, tree)
	m.umount(dir)
	if f.what == "" {
		sum.seen = f.seen
		return false
	}
	sum.failed++
	sum.what[strings.Fields(f.what)[0]]++
	return true
}
