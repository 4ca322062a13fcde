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

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

// startThin starts an instance whose cache is on an ext4 that promises more space than
// there is, as a thin volume does: what is written is taken, and fails when it is written
// back. The function that it returns uses up what there is, and that one's gives it back.
func startThin(t *testing.T) (m *mounted, exhaust func() (free func())) {
	t.Helper()
	m = &mounted{instance.New(t, ""), t}
	below, point := filepath.Join(m.Dir, "below"), filepath.Join(m.Dir, "thin")
	if err := errors.Join(os.Mkdir(below, 0o700), os.Mkdir(point, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", below, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(below, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 256<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", disk)
	run(t, "mount", "-o", "loop,errors=continue", disk, point)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		select {
		case <-m.Ended:
		default:
			m.Stop()
		}
		if err := errors.Join(syscall.Unmount(point, 0), syscall.Unmount(below, syscall.MNT_DETACH)); err != nil {
			t.Errorf("unmount the thin filesystem: %v", err)
		}
	})
	m.Root = filepath.Join(point, "cache")
	m.StartDaemon()
	return m, func() func() {
		t.Helper()
		path := filepath.Join(below, "ballast")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		block := bytes.Repeat([]byte{1}, 4096)
		for err == nil {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) || f.Close() != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}
}

// What was taken and cannot be written back is not there: the sync says so, and it is
// fetched again. What readers were given of it meanwhile, where the kernel had dropped it
// from memory, is forgotten.
func TestDiskThatLosesWhatItTook(t *testing.T) {
	for name, drop := range map[string]bool{"as it is": false, "and memory is short": true} {
		t.Run(name, func(t *testing.T) {
			m, exhaust := startThin(t)
			image := formatOf("estargz").packAll(t, stormTars(t, 24)...)
			ref, tree := image.push(t, ocitest.New(t)), image.tree(t)
			dir := m.mount(ref, "mnt")
			files := filesOf(tree)
			free := exhaust()
			sum := readOnce(t, dir, files, 4)
			if sum.Wrong+sum.Other > 0 {
				t.Errorf("%s %q", sum.String(), sum.Examples)
			}
			if drop {
				syscall.Sync() // which fails, and nobody is told
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
					t.Fatal(err)
				}
				// README.md has among its limits what is read in these seconds.
				sum = readOnce(t, dir, files, 4)
				t.Logf("between a failed write and the sync: %s", sum.String())
			}
			instance.Eventually(t, 30*time.Second, func() error {
				if out := m.Lacuna("status"); !strings.Contains(out, "sync data") {
					return errors.New("status does not tell why")
				}
				if sum := readOnce(t, dir, files, 4); sum.Wrong > 0 {
					return fmt.Errorf("%s", sum.String())
				}
				return nil
			})
			sum = readOnce(t, dir, files, 4)
			if sum.Wrong+sum.Other > 0 {
				t.Errorf("after what was written is lost: %s %q", sum.String(), sum.Examples)
			}
			free()
			instance.Eventually(t, 30*time.Second, func() error {
				if sum := readOnce(t, dir, files, 4); sum.EIO+sum.Other > 0 {
					return fmt.Errorf("%s", sum.String())
				}
				return nil
			})
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}
