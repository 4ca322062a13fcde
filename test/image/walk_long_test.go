//go:build long

package image

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
)

// mappings of one file in one process; the kernel allows 65530 (vm.max_map_count).
const mappings = 50_000

// mapMany makes a search for the users of a file take a while: it looks at each mapping
// of each process.
func mapMany(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "mapped"))
	if err == nil {
		err = f.Truncate(4096)
	}
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	t.Cleanup(func() {
		for _, m := range all {
			if err := syscall.Munmap(m); err != nil {
				t.Error(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	for range mappings { // of the same page each, so that none are one
		m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

// Who looks for the users of a mount, in all processes, holds up nobody else: while a
// mount at a place that is in use is refused with their names, status is answered.
func TestLookingForUsersHoldsUpNobody(t *testing.T) {
	h := hold(t)
	h.Lacuna("umount", "--lazy", h.dir)
	mapMany(t)
	socket := filepath.Join(h.Root, "lacuna.sock")
	other, err := control.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	type refusal struct {
		err  error
		took time.Duration
	}
	refused := make(chan refusal)
	go func() {
		began := time.Now()
		_, err := other.Mount(t.Context(), control.MountRequest{Image: h.ref, Dir: h.dir})
		refused <- refusal{err, time.Since(began)}
	}()
	client, err := control.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var longest time.Duration
	answers := 0
	for {
		select {
		case r := <-refused:
			if r.err == nil || !strings.Contains(r.err.Error(), "still in use by process") {
				t.Errorf("mount: %v", r.err)
			}
			t.Logf("the mount was refused after %v; meanwhile %d answers, the longest after %v", r.took, answers, longest)
			if longest > r.took/2 {
				t.Error("status waited for it")
			}
			h.want(h.tell())
			return
		default:
		}
		began := time.Now()
		if _, err := client.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
		answers++
	}
}
