package erofs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a program and returns what it says.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// files writes an image and its devices into a directory. A device's block has
// its own number in it.
func files(t testing.TB, img *Image, dir string) (image string, devices []string) {
	t.Helper()
	image = filepath.Join(dir, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(f, img); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i, d := range img.Devices {
		path := filepath.Join(dir, fmt.Sprint("device", i))
		if err := os.WriteFile(path, deviceBytes(i, 0, int64(d.Blocks)*BlockSize), 0o600); err != nil {
			t.Fatal(err)
		}
		devices = append(devices, path)
	}
	return image, devices
}

// deviceBytes are the bytes [offset, offset+n) of device i.
func deviceBytes(i int, offset, n int64) []byte {
	var b bytes.Buffer
	first := offset &^ 15
	for at := first; at < offset+n; at += 16 {
		fmt.Fprintf(&b, "%3d:%11x\n", i, at)
	}
	return b.Bytes()[offset-first:][:n]
}

// withDevices puts an option for each device before args.
func withDevices(devices []string, args ...string) []string {
	var all []string
	for _, d := range devices {
		all = append(all, "--device="+d)
	}
	return append(all, args...)
}

// TestToolsAcceptWhatIsWritten asks fsck.erofs and dump.erofs of erofs-utils.
// fsck.erofs reads all metadata, but not the data: 1.5 takes the place in the
// device for one in the image (erofs_map_dev of lib/data.c).
func TestToolsAcceptWhatIsWritten(t *testing.T) {
	img := sample()
	image, devices := files(t, img, t.TempDir())
	if out := run(t, "fsck.erofs", withDevices(devices, "-d3", image)...); !strings.Contains(out, "No errors found") {
		t.Errorf("fsck.erofs: %s", out)
	}
	out := run(t, "dump.erofs", withDevices(devices, "-s", image)...)
	info := open(t, write(t, img)).Info()
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", info.UUID[:4], info.UUID[4:6], info.UUID[6:8], info.UUID[8:10], info.UUID[10:])
	if !strings.Contains(out, uuid) || !strings.Contains(out, fmt.Sprint(info.Inodes)) {
		t.Errorf("dump.erofs does not say %s and %d inodes:\n%s", uuid, info.Inodes, out)
	}
}
