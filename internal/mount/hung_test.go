package mount

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/sys"
)

// hangFUSE mounts a FUSE filesystem of a daemon that answers nothing, and has a
// process hold a descriptor of its root.
func hangFUSE(t *testing.T) {
	t.Helper()
	featurestest.NeedRoot(t)
	dir := t.TempDir()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if kinds, e := os.ReadFile("/proc/filesystems"); os.IsNotExist(err) && e == nil && !strings.Contains(string(kinds), "\tfuse\n") {
		t.Skip("probe /dev/fuse and /proc/filesystems: the kernel has no FUSE")
	}
	ok(t, err)
	// Closing the device aborts what waits for an answer.
	t.Cleanup(func() { ok(t, dev.Close()) })
	ok(t, syscall.Mount("hung", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev.Fd())))
	t.Cleanup(func() { ok(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	fd, err := sys.OpenPath(dir)
	ok(t, err)
	file := fd.File(dir)
	defer func() { ok(t, file.Close()) }()
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{file}
	in, err := cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	t.Cleanup(func() {
		ok(t, in.Close())
		ok(t, cmd.Wait())
	})
}

func TestUsersAreFoundWhileAFilesystemHangs(t *testing.T) {
	hangFUSE(t)
	nobody := sys.Inode{Dev: 1 << 40, Ino: 1}
	done := make(chan error, 2)
	go func() {
		_, err := UsersOf(nobody.Dev)
		done <- err
		_, err = Users(map[sys.Inode]bool{nobody: true})
		done <- err
	}()
	for range 2 {
		select {
		case err := <-done:
			ok(t, err)
		case <-time.After(20 * time.Second):
			t.Fatal("it waits for a filesystem that does not answer")
		}
	}
}
