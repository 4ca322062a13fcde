package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// reboot does to an instance what the machine's start anew does: both processes
// die at one blow, mounts are gone with their superblocks, what the kernel numbers is numbered
// anew, and the cache root is as it was at that moment.
func (m *mounted) reboot() {
	m.t.Helper()
	status := m.Status()
	bdi := m.bdi()
	m.Kill(status.KeeperPID, status.WorkerPID)
	<-m.Ended
	for _, point := range instance.MountsBelow(m.Dir) {
		if err := syscall.Unmount(point, 0); err != nil {
			m.t.Fatalf("unmount %s: %v", point, err)
		}
	}
	instance.Eventually(m.t, 10*time.Second, func() error {
		if _, err := os.Stat(bdi); !os.IsNotExist(err) {
			return fmt.Errorf("%s is still there: %w", bdi, err)
		}
		return nil
	})
	records, err := filepath.Glob(filepath.Join(m.Root, "served", "*.json"))
	if err != nil || len(records) == 0 {
		m.t.Fatalf("records: %v, %v", records, err)
	}
	for _, name := range records {
		m.otherBoot(name)
	}
}

// otherBoot makes a record be of the time before the last start of the machine.
func (m *mounted) otherBoot(name string) {
	m.t.Helper()
	b, err := os.ReadFile(name)
	var record map[string]any
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	if err != nil || record["boot"] == nil {
		m.t.Fatalf("record %s: %v: %s", name, err, b)
	}
	record["boot"] = "00000000-0000-4000-8000-000000000000"
	if b, err = json.Marshal(record); err == nil {
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// bdi is the kernel's directory of the one mount's superblock, which is there for as
// long as that lives (super_setup_bdi of fs/super.c).
func (m *mounted) bdi() string {
	m.t.Helper()
	record, err := filepath.Glob(filepath.Join(m.Root, "served", "*.json"))
	if err != nil || len(record) != 1 {
		m.t.Fatalf("records: %v, %v", record, err)
	}
	var text struct{ Superblock string }
	b, err := os.ReadFile(record[0])
	if err == nil {
		err = json.Unmarshal(b, &text)
	}
	if err != nil || text.Superblock == "" {
		m.t.Fatalf("record %s: %v: %s", record[0], err, b)
	}
	return "/sys/class/bdi/" + text.Superblock
}

// After the machine was started anew what was mounted is not, is mounted again
// without a network, and what was present is right; what is missing is EIO until the
// registry is there.
func TestMachineIsStartedAnew(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			s := newStormed(t, f, 16, 0, "deadline = \"500ms\"\nstall = \"200ms\"\n")
			half := s.files[:len(s.files)/2]
			sum := readOnce(t, s.dir, half, 4)
			sum.wantRight(t)
			s.wantSaved()
			s.reboot()
			s.faulty.set(func() { s.faulty.down = true })
			s.StartDaemon()
			if status := s.Status(); len(status.Mounted)+len(status.Broken)+len(status.Unguarded) > 0 {
				t.Errorf("after the start: %+v", status)
			}
			if _, err := os.Lstat(s.dir); !os.IsNotExist(err) {
				t.Errorf("%s is still there: %v", s.dir, err)
			}
			dir := s.mount(s.ref, "mnt")
			sum = readOnce(t, dir, half, 4)
			sum.wantRight(t)
			sum = readOnce(t, dir, s.files, 8)
			if sum.Wrong+sum.Other > 0 || f.indexed != (sum.EIO > 0) {
				t.Errorf("offline: %s %q", sum.String(), sum.Examples)
			}
			s.faulty.set(func() { s.faulty.down = false })
			instance.Eventually(t, 30*time.Second, func() error {
				if sum := readOnce(t, dir, s.files, 8); sum.EIO+sum.Other > 0 {
					return fmt.Errorf("%s", sum.String())
				}
				return nil
			})
			compare(t, dir, s.tree)
			s.umount(dir)
			s.Lacuna("check", "--verify")
		})
	}
}

// Presence that the machine's end has torn, or lost, costs the data of it, and no
// more: all is right.
func TestMachineIsStartedAnewWithTornPresence(t *testing.T) {
	for name, tear := range map[string]func([]byte) []byte{
		"lost": func(b []byte) []byte { return b[:0] },
		"half": func(b []byte) []byte { return b[:len(b)/2] },
		"zeros": func(b []byte) []byte {
			return append(bytes.Clone(b[:len(b)/2]), make([]byte, len(b)-len(b)/2)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStormed(t, formatOf("estargz"), 8, 0, "")
			sum := readOnce(t, s.dir, s.files[:len(s.files)/2], 4)
			sum.wantRight(t)
			s.wantSaved()
			s.reboot()
			presence, err := filepath.Glob(filepath.Join(s.Root, "objects", "*", "*", "presence"))
			if err != nil || len(presence) != 2 {
				t.Fatalf("%v, %v", presence, err)
			}
			b, err := os.ReadFile(presence[0])
			if err == nil {
				err = os.WriteFile(presence[0], tear(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.StartDaemon()
			if _, err := s.Try("check"); err != nil {
				t.Logf("check: %v", err)
			}
			dir := s.dir
			if _, err := s.Try("mount", s.ref, dir); err != nil {
				t.Logf("mount: %v", err)
				if instance.ExitOf(err) != 4 || !strings.Contains(err.Error(), "hint:") {
					t.Errorf("mount: %v", err)
				}
				out, err := s.Try("check", "--repair")
				t.Logf("check --repair: %v: %s", err, out)
				s.Lacuna("mount", s.ref, dir)
			}
			compare(t, dir, s.tree)
			s.umount(dir)
			s.Lacuna("check", "--verify")
		})
	}
}

// wantSaved waits until what is present is recorded on the disk.
func (s *stormed) wantSaved() {
	s.t.Helper()
	instance.Eventually(s.t, 30*time.Second, func() error {
		for _, l := range s.Status().Mounted[0].Layers {
			var on struct{ Present int64 }
			if err := json.Unmarshal([]byte(s.Lacuna("inspect", "--json", l.Object)), &on); err != nil {
				return err
			}
			if on.Present < l.Present {
				return fmt.Errorf("%d bytes of %s on record, %d present", on.Present, l.Object, l.Present)
			}
		}
		return nil
	})
}
