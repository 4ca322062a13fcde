package sys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestMountCallsMountAndSayWhatTheyWereDoing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("needs root, and runs as uid %d", os.Geteuid())
	}
	dir := t.TempDir()
	context, err := Fsopen("tmpfs")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := context.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := FsconfigString(context, "size", "64k"); err != nil {
		t.Fatal(err)
	}
	if err := FsconfigString(context, "source", strings.Repeat("s", 256)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("value of 256 bytes: %v", err)
	}
	if err := FsconfigFlag(context, "ro"); err != nil {
		t.Fatal(err)
	}
	if err := FsconfigFlag(context, "nonsense"); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("unknown option: %v", err)
	}
	if err := FsconfigCreate(context); err != nil {
		t.Fatal(err)
	}
	tree, err := Fsmount(context, MountReadOnly|MountNoSUID|MountNoDev)
	if err != nil {
		t.Fatal(err)
	}
	if err := MoveMount(tree, filepath.Join(dir, "none")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("target that is not there: %v", err)
	}
	if err := errors.Join(MoveMount(tree, dir), tree.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to the mount: %v", err)
	}
	if err := Unmount(dir, false); err != nil {
		t.Error(err)
	}
}

func TestUnknownFilesystemTypeIsENODEV(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("needs root, and runs as uid %d", os.Geteuid())
	}
	if _, err := Fsopen("no-such-type"); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("error is %v", err)
	}
}
