package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
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

// startSmall starts an instance whose cache root is on an ext4 of 64 MiB.
func startSmall(t *testing.T) *mounted {
	t.Helper()
	m := &mounted{instance.New(t, ""), t}
	disk, point := filepath.Join(m.Dir, "disk"), filepath.Join(m.Dir, "small")
	err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20), os.Mkdir(point, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "/usr/sbin/mkfs.ext4", "-q", "-F", disk)
	run(t, "mount", "-o", "loop", disk, point)
	t.Cleanup(func() { // before the instance's own, which ends what a failed test left
		if t.Failed() {
			return
		}
		select {
		case <-m.Ended:
		default:
			m.Stop()
		}
		if err := syscall.Unmount(point, 0); err != nil {
			t.Errorf("unmount the small filesystem: %v", err)
		}
	})
	m.Root = filepath.Join(point, "cache")
	m.StartDaemon()
	return m
}

// fillUp takes all space of the root's filesystem but left bytes, and returns how to
// free it.
func (m *mounted) fillUp(left int64) (free func()) {
	m.t.Helper()
	path := filepath.Join(filepath.Dir(m.Root), "ballast")
	f, err := os.Create(path)
	if err != nil {
		m.t.Fatal(err)
	}
	block, size := bytes.Repeat([]byte{1}, 4096), int64(0)
	for err == nil {
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	// What is not on the disk yet does not give its space back at once.
	if !errors.Is(err, syscall.ENOSPC) || f.Sync() != nil || f.Truncate(max(size-left, 0)) != nil || f.Close() != nil {
		m.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			m.t.Error(err)
		}
	}
}

// The disk gets full while files of a mount are read: EIO, and what is present is
// read on; with room again all is well.
func TestDiskFullUnderReaders(t *testing.T) {
	for _, name := range []string{"estargz", "zstdchunked"} {
		t.Run(name, func(t *testing.T) {
			m := startSmall(t)
			image := formatOf(name).packAll(t, stormTars(t, 24)...)
			ref, tree := image.push(t, ocitest.New(t)), image.tree(t)
			dir := m.mount(ref, "mnt")
			files := filesOf(tree)
			half := files[:len(files)/3]
			sum := readOnce(t, dir, half, 4)
			sum.wantRight(t)
			free := m.fillUp(2 << 20)
			sum = readOnce(t, dir, files, 8)
			if sum.Wrong+sum.Other > 0 || sum.EIO == 0 {
				t.Errorf("on a full disk: %s %q", sum.String(), sum.Examples)
			}
			if out := m.Lacuna("status"); !strings.Contains(out, "no space left") {
				t.Errorf("status does not tell why:\n%s", out)
			}
			sum = readOnce(t, dir, half, 4)
			sum.wantRight(t)
			worker := m.WaitWorker(0)
			m.Kill(worker) // and the next one starts on the full disk
			m.WaitWorker(worker)
			m.WaitReady()
			sum = readOnce(t, dir, files, 8)
			if sum.Wrong+sum.Other > 0 || sum.EIO == 0 {
				t.Errorf("after a worker's death: %s %q", sum.String(), sum.Examples)
			}
			free()
			instance.Eventually(t, 30*time.Second, func() error {
				if sum := readOnce(t, dir, files, 8); sum.EIO+sum.Other > 0 {
					return fmt.Errorf("%s", sum.String())
				}
				return nil
			})
			compare(t, dir, tree)
			m.umount(dir)
			m.Lacuna("check", "--verify")
		})
	}
}

// The disk is full at each point of a mount: with so much room left, and so much
// more, until there is enough. What fails says why, and has left nothing mounted.
func TestDiskFullAtEachPointOfAMount(t *testing.T) {
	for _, name := range faultFormats {
		t.Run(name, func(t *testing.T) {
			m := startSmall(t)
			r := ocitest.New(t)
			dir, failures := filepath.Join(m.Dir, "mnt"), 0
			for n := int64(0); ; n++ {
				if n == 400 {
					t.Fatal("it is never enough")
				}
				var members []member
				for k, size := range []int{100, 70_000, 200_001, 0, 12_345} {
					members = append(members, file(fmt.Sprintf("%d/file%d", n, k), string(toctest.Random(uint64(n)*10+uint64(k), size))))
				}
				image := formatOf(name).packAll(t, tarOf(t, members...), tarOf(t, file("other", fmt.Sprint(n))))
				ref, tree := image.push(t, r), image.tree(t)
				free := m.fillUp(n * roomStep)
				_, err := m.Try("mount", ref, dir)
				if err != nil {
					failures++
					if instance.ExitOf(err) != int(control.ExitError) || !strings.Contains(err.Error(), "no space left") {
						t.Errorf("with %d KiB: %v", n*roomStep>>10, err)
					}
					m.wantNothing(dir)
				} else if sum := readOnce(t, dir, filesOf(tree), 2); sum.Wrong+sum.Other > 0 {
					t.Errorf("with %d KiB: %s %q", n*roomStep>>10, sum.String(), sum.Examples)
				} else if sum.EIO == 0 {
					free()
					compare(t, dir, tree)
					m.umount(dir)
					t.Logf("%d mounts failed; %d KiB were enough", failures, n*roomStep>>10)
					break
				}
				free()
				if err != nil {
					m.Lacuna("mount", ref, dir)
				}
				instance.Eventually(t, 30*time.Second, func() error {
					if sum := readOnce(t, dir, filesOf(tree), 2); sum.EIO+sum.Other > 0 {
						return fmt.Errorf("%s %q", sum.String(), sum.Examples)
					}
					return nil
				})
				compare(t, dir, tree)
				m.umount(dir)
			}
			if failures == 0 {
				t.Error("no mount met a full disk")
			}
			m.Lacuna("check", "--verify")
		})
	}
}
