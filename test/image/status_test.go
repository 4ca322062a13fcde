package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// Status shows a mount, its layers with their formats, and what of them is there.
func TestStatusShowsLayersAndFiles(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			_, r := newFaulty(t)
			var members []member
			for n := range 40 {
				members = append(members, file(fmt.Sprintf("file%02d", n), string(toctest.Random(uint64(n), 2<<20))))
			}
			image := f.packAll(t, tarOf(t, append(members, file("empty", ""))...), tarOf(t, dir("etc/")))
			m := start(t, "")
			at := m.mount(image.push(t, r), "mnt")
			scanned := m.Status().Mounted[0].Layers[0].Format == "scanned"
			if _, err := os.ReadFile(filepath.Join(at, "file20")); err != nil {
				t.Fatal(err)
			}
			l := m.Status().Mounted[0].Layers[0]
			if l.Files != 40 || l.FilesPresent < 1 || scanned != (l.FilesPresent == 40) || l.Present < 2<<20 {
				t.Errorf("%+v", l)
			}
			out := m.Lacuna("status")
			for _, want := range []string{
				at + "\n", fmt.Sprintf("%.19s  %s: ", l.Digest, l.Format), fmt.Sprintf(", %d of 40 files", l.FilesPresent), ": no data\n",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("status has no %q:\n%s", want, out)
				}
			}
			m.umount(at)
		})
	}
}

// Status tells of workers that have died, also after an upgrade.
func TestStatusCountsDeadWorkers(t *testing.T) {
	m := start(t, "")
	if s, out := m.Status(), m.Lacuna("status"); s.WorkerDeaths != 0 || !s.LastDeath.IsZero() || strings.Contains(out, "restarts") {
		t.Errorf("at first: %+v\n%s", s, out)
	}
	for n := 1; n <= 2; n++ {
		worker := m.WaitWorker(0)
		m.Kill(worker)
		m.WaitWorker(worker)
		m.WaitReady()
		if s := m.Status(); s.WorkerDeaths != n || s.LastDeath.IsZero() {
			t.Errorf("after %d deaths: %d, the last at %v", n, s.WorkerDeaths, s.LastDeath)
		}
	}
	m.upgrade()
	if s, out := m.Status(), m.Lacuna("status"); s.WorkerDeaths != 2 || !strings.Contains(out, "restarts  2 workers died, the last one ") {
		t.Errorf("after an upgrade: %d deaths\n%s", s.WorkerDeaths, out)
	}
}

// upgrade has the instance upgraded and waits for the next worker.
func (m *mounted) upgrade() {
	m.t.Helper()
	worker := m.WaitWorker(0)
	m.Signal(syscall.SIGHUP)
	m.WaitWorker(worker)
	m.WaitReady()
}
