package image

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/test/instance"
)

// partsOf are the filesystem image of the mount on dir, and the files of its devices.
func (m *mounted) partsOf(dir string) (image string, devices []string) {
	m.t.Helper()
	records, err := filepath.Glob(filepath.Join(m.Root, "served", "*.json"))
	if err != nil {
		m.t.Fatal(err)
	}
	var plan struct {
		Content struct {
			Layers  []struct{ Device string }
			Devices []int
		}
	}
	for _, name := range records {
		var record struct{ Path, Plan string }
		readJSON(m.t, name, &record)
		if record.Path == dir {
			image = filepath.Join(m.Root, "images", record.Plan, "metadata.erofs")
			readJSON(m.t, filepath.Join(filepath.Dir(image), "plan.json"), &plan)
		}
	}
	for _, n := range plan.Content.Devices {
		id := plan.Content.Layers[n].Device
		devices = append(devices, filepath.Join(m.Root, "objects", id[:2], id, "data"))
	}
	return image, devices
}

func readJSON(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// wantTools wants erofs-utils to accept a mounted image all of whose data is present.
// An fsck.erofs that knows extended attributes finds data in devices, too: it extracts
// all, which then is the tree. The attributes it sets before the owner and the permissions,
// which takes capabilities away and changes access control lists; they are not compared.
func (m *mounted) wantTools(dir string, want *node) {
	m.t.Helper()
	image, devices := m.partsOf(dir)
	var args []string
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	if out := run(m.t, "fsck.erofs", append(args, "-d3", image)...); !strings.Contains(out, "No errors found") {
		m.t.Errorf("fsck.erofs: %s", out)
	}
	run(m.t, "dump.erofs", append(args, "-s", image)...)
	help, err := exec.Command("fsck.erofs", "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(help), "xattrs") {
		return
	}
	to := instance.Dir(m.t)
	run(m.t, "fsck.erofs", append(args, "--extract="+to, "--overwrite", "--preserve", image)...)
	files, size := compareWith(&comparison{t: m.t, bare: true}, to, want)
	m.t.Logf("extracted: %d names, %d MiB compared", files, size>>20)
}
