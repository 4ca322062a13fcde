package mount

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

// oneFile makes the files of a filesystem with one file, data, of that content.
func oneFile(t testing.TB, dir string, content []byte) EROFS {
	t.Helper()
	featurestest.NeedRoot(t)
	var p features.Prober
	featurestest.SkipUnless(t, p.HaveErofsFileMounts(dir))
	blocks := (len(content) + erofs.BlockSize - 1) / erofs.BlockSize
	file := &erofs.Inode{Mode: syscall.S_IFREG | 0o444, Size: int64(len(content))}
	img := &erofs.Image{
		Root:    &erofs.Inode{Mode: syscall.S_IFDIR | 0o555, Children: []erofs.Dirent{{Name: "data", Inode: file}}},
		Devices: []erofs.Device{{Tag: "one", Blocks: uint64(blocks)}},
	}
	var b bytes.Buffer
	ok(t, erofs.Write(&b, img))
	e := EROFS{Image: filepath.Join(dir, "image"), Devices: []string{filepath.Join(dir, "device")}, ReadAhead: 64}
	ok(t, os.WriteFile(e.Image, b.Bytes(), 0o600))
	ok(t, os.WriteFile(e.Devices[0], append(bytes.Clone(content), make([]byte, blocks*erofs.BlockSize-len(content))...), 0o600))
	return e
}

func TestFilesystemLivesAsLongAsItIsUsed(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("content"), 1000)
	made, err := oneFile(t, dir, content).Make()
	ok(t, err)
	target := filepath.Join(dir, "target")
	ok(t, os.Mkdir(target, 0o700))
	alive := func(want bool) {
		t.Helper()
		if is, err := Alive(made.Superblock); err != nil || is != want {
			t.Fatalf("alive: %v, %v; want %v", is, err, want)
		}
	}
	alive(true)
	ok(t, made.MoveTo(target))
	ok(t, made.Close())
	mounted := true
	t.Cleanup(func() {
		if mounted {
			ok(t, Unmount(target, true))
		}
	})
	ahead, err := os.ReadFile(filepath.Join(bdiDir, made.Superblock, "read_ahead_kb"))
	if err != nil || strings.TrimSpace(string(ahead)) != "64" {
		t.Errorf("read-ahead is %s: %v", ahead, err)
	}
	mounts, err := List()
	ok(t, err)
	m, found := At(mounts, target)
	if !found || m.Type != "erofs" || m.Source != filepath.Join(dir, "image") || m.Device() != made.Device {
		t.Errorf("mounted: %v, %+v; its device is %d", found, m, made.Device)
	}
	file := filepath.Join(target, "data")
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if st := inodeOfPath(t, file); st.Dev != made.Device {
		t.Errorf("a file is on device %d, not %d", st.Dev, made.Device)
	}
	for _, how := range []string{"open", "map"} {
		user, stop := startUser(t, how, file)
		users, err := usersHere(made.Device)
		if err != nil || len(users) != 1 || users[0].PID != user {
			t.Errorf("%s: %v, %v, want %d", how, users, err, user)
		}
		if users, err := usersHere(made.Device, user); err != nil || len(users) != 0 {
			t.Errorf("%s, left out: %v, %v", how, users, err)
		}
		if err := Unmount(target, false); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%s: unmount while in use: %v", how, err)
		}
		stop()
	}
	user, stop := startUser(t, "open", file)
	ok(t, Unmount(target, true))
	mounted = false
	alive(true)
	if users, err := usersHere(made.Device); err != nil || len(users) != 1 || users[0].PID != user {
		t.Errorf("without a mount: %v, %v", users, err)
	}
	stop()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if is, err := Alive(made.Superblock); err == nil && !is {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it lives on")
		}
	}
}

// usersHere are the users of this mount namespace: other tests may have copies of
// all mounts in one of their own.
func usersHere(dev uint64, except ...int) ([]User, error) {
	users, err := UsersOf(dev, except...)
	return slices.DeleteFunc(users, func(u User) bool { return u.Elsewhere }), err
}

func TestMountInAnotherNamespaceIsFound(t *testing.T) {
	dir := t.TempDir()
	made, err := oneFile(t, dir, []byte("content")).Make()
	ok(t, err)
	target := filepath.Join(dir, "target")
	ok(t, os.Mkdir(target, 0o700))
	ok(t, made.MoveTo(target))
	ok(t, made.Close())
	t.Cleanup(func() { ok(t, Unmount(target, true)) })
	own := filepath.Join(dir, "own")
	ok(t, os.WriteFile(own, nil, 0o600))
	user, stop := startUserElsewhere(t, own)
	found := func(except ...int) bool {
		t.Helper()
		users, err := Elsewhere(made.Device, except...)
		ok(t, err)
		return slices.ContainsFunc(users, func(u User) bool {
			return u.PID == user && u.Elsewhere && strings.Contains(u.String(), "mount namespace")
		})
	}
	if !found() || found(user) {
		t.Errorf("process %d: found %v, and %v where it is left out", user, found(), found(user))
	}
	stop()
	if found() {
		t.Error("found although it is gone")
	}
}

// A name of more than 255 bytes goes to the kernel as a descriptor.
func TestLongPathsAreTaken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("b", 200))
	ok(t, os.MkdirAll(dir, 0o700))
	made, err := oneFile(t, dir, []byte("content")).Make()
	ok(t, err)
	ok(t, made.Close())
	if is, err := Alive(made.Superblock); err != nil || is {
		t.Errorf("it lives although nobody has it: %v, %v", is, err)
	}
}

func TestFilesystemsOfOneImageAreToldApart(t *testing.T) {
	e := oneFile(t, t.TempDir(), []byte("content"))
	blocks, devices := make(map[string]bool), make(map[uint64]bool)
	for range 5 {
		made, err := e.Make()
		ok(t, err)
		defer func() { ok(t, made.Close()) }()
		if blocks[made.Superblock] || devices[made.Device] {
			t.Errorf("%s, device %d, was made before", made.Superblock, made.Device)
		}
		blocks[made.Superblock], devices[made.Device] = true, true
	}
}

func TestFilesystemThatCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	e := oneFile(t, dir, []byte("content"))
	missing := e
	missing.Devices = []string{filepath.Join(dir, "none")}
	if _, err := missing.Make(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), e.Image) {
		t.Errorf("no device: %v", err)
	}
	ok(t, os.WriteFile(e.Image, make([]byte, 8192), 0o600))
	if _, err := e.Make(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no image: %v", err)
	}
}
