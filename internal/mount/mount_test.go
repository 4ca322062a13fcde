package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/sys"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	beUser()
	leaktest.Main(m)
}

// ok fails the test unless err is nil.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// escape does what the kernel does with paths (fs/proc_namespace.c, mangle).
func escape(s string) string {
	return strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace(s)
}

// line writes m as the kernel does, with other optional fields besides.
func line(m Mount, optional string) string {
	if m.master > 0 {
		optional = fmt.Sprintf(" master:%d", m.master) + optional
	}
	if m.shared > 0 {
		optional = fmt.Sprintf(" shared:%d", m.shared) + optional
	}
	return fmt.Sprintf("%d %d %d:%d %s %s rw,relatime%s - %s %s %s", m.ID, m.Parent, m.Major, m.Minor, escape(m.Root), escape(m.Point), optional, m.Type, escape(m.Source), m.options)
}

func TestWhatTheKernelWritesIsRead(t *testing.T) {
	path := rapid.StringMatching("(/[a-z \t\n\v\r\u00a0\u2003\\\\#.0-9-]{1,8}){1,4}")
	rapid.Check(t, func(t *rapid.T) {
		var want []Mount
		var text strings.Builder
		for range rapid.IntRange(0, 5).Draw(t, "mounts") {
			m := Mount{
				ID: rapid.IntRange(0, 1<<30).Draw(t, "id"), Parent: rapid.IntRange(0, 1<<30).Draw(t, "parent"),
				Major: rapid.Uint32().Draw(t, "major"), Minor: rapid.Uint32().Draw(t, "minor"),
				Root: path.Draw(t, "root"), Point: path.Draw(t, "point"), Type: rapid.StringMatching(`[a-z0-9.]{1,8}`).Draw(t, "type"),
				Source:  rapid.OneOf(path, rapid.Just("none")).Draw(t, "source"),
				options: "rw,x=y",
				shared:  rapid.IntRange(0, 9).Draw(t, "shared"), master: rapid.IntRange(0, 9).Draw(t, "master"),
			}
			want = append(want, m)
			optional := rapid.SampledFrom([]string{"", " propagate_from:3", " unbindable"}).Draw(t, "optional")
			text.WriteString(line(m, optional) + "\n")
		}
		got, err := parse(strings.NewReader(text.String()))
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q:\n%+v, %v, want\n%+v", text.String(), got, err, want)
		}
	})
}

func TestLinesThatAreNotUnderstood(t *testing.T) {
	good := line(Mount{ID: 1, Parent: 2, Root: "/", Point: "/x", Type: "ext4", Source: "none", options: "rw,x=y"}, "")
	if _, err := parse(strings.NewReader(good)); err != nil { // no newline at the end
		t.Errorf("%s: %v", good, err)
	}
	for _, bad := range []string{
		"\n", "1 2 3:4 / /x rw", "1 2 3:4 / - ext4 none rw", strings.Replace(good, "1", "x", 1),
		strings.Replace(good, "0:0", "0", 1), strings.Replace(good, "0:0", "0:-1", 1), strings.Replace(good, "0:0", "4294967296:0", 1),
		strings.Replace(good, " - ", " ", 1), strings.TrimSuffix(good, "ext4 none rw,x=y"),
	} {
		if got, err := parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken: %+v", bad, got)
		}
	}
	broken := errors.New("broken")
	if _, err := parse(brokenReader{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func FuzzParse(f *testing.F) {
	f.Add([]byte(line(Mount{ID: 36, Parent: 35, Major: 98, Root: "/a b", Point: `/c\d`, Type: "ext3", master: 1}, "") + "\n"))
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Fuzz(func(t *testing.T, b []byte) {
		mounts, err := parse(bytes.NewReader(b))
		if err != nil {
			return
		}
		// What was understood says the same when it is written again.
		var text strings.Builder
		for _, m := range mounts {
			text.WriteString(line(m, "") + "\n")
		}
		again, err := parse(strings.NewReader(text.String()))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(mounts) {
			t.Fatalf("%+v became %+v, %v", mounts, again, err)
		}
	})
}

func FuzzUnescape(f *testing.F) {
	f.Add("plain")
	f.Add(`a\040b\134c\`)
	f.Add(`\777\04`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(escape(s)); got != s {
			t.Errorf("%q became %q", s, got)
		}
		if got := unescape(s); len(got) > len(s) {
			t.Errorf("%q became longer: %q", s, got)
		}
	})
}

func TestAtIsTheTopmost(t *testing.T) {
	mounts := []Mount{{ID: 1, Point: "/"}, {ID: 2, Point: "/a"}, {ID: 3, Point: "/a"}, {ID: 4, Point: "/a/b"}}
	for point, want := range map[string]int{"/": 1, "/a": 3, "/a/b": 4, "/b": 0, "/a/": 0, "": 0} {
		if m, found := At(mounts, point); m.ID != want || found != (want > 0) {
			t.Errorf("%q: %+v, %v", point, m, found)
		}
	}
}

func TestBoundFileIsListedAndItsUsersAreFound(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, `tar get\#`)
	ok(t, os.WriteFile(source, bytes.Repeat([]byte("x"), 8192), 0o600))
	ok(t, os.WriteFile(target, nil, 0o600))
	ok(t, BindFile(source, target))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			ok(t, Unmount(target, true))
		}
	})
	mounts, err := List()
	ok(t, err)
	m, found := At(mounts, target)
	inode := inodeOfPath(t, source)
	major, minor := inode.DeviceNumbers()
	if !found || !strings.HasSuffix(source, m.Root) && !strings.HasSuffix(m.Root, "/source") || m.Major != major || m.Minor != minor {
		t.Errorf("found: %v, %+v", found, m)
	}

	files := map[sys.Inode]bool{inode: true}
	if users, err := Users(files); err != nil || len(users) != 0 {
		t.Errorf("nobody uses it: %v, %v", users, err)
	}
	for _, how := range []string{"open", "map"} {
		user, stop := startUser(t, how, target)
		users, err := Users(files)
		if err != nil || len(users) != 1 || users[0].PID != user || users[0].Name != "mount.test" || !slices.Equal(users[0].Open, []sys.Inode{inode}) {
			t.Errorf("%s: %v, %v, want %d", how, users, err, user)
		}
		if users, err := Users(files, user); err != nil || len(users) != 0 {
			t.Errorf("%s, left out: %v, %v", how, users, err)
		}
		if err := Unmount(target, false); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%s: unmount while in use: %v", how, err)
		}
		stop()
	}
	ok(t, Unmount(target, false))
	mounted = false
	mounts, err = List()
	ok(t, err)
	if m, found := At(mounts, target); found {
		t.Errorf("still there: %+v", m)
	}
}

func TestUserIsShownWithItsName(t *testing.T) {
	if got := (User{PID: 7, Name: "cat"}).String(); got != "7 (cat)" {
		t.Errorf("got %s", got)
	}
}

func TestBindFileErrors(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := BindFile(source, source); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no source: %v", err)
	}
	ok(t, os.WriteFile(source, nil, 0o600))
	if err := BindFile(source, source+"-absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no target: %v", err)
	}
}

func inodeOfPath(t testing.TB, path string) sys.Inode {
	t.Helper()
	inode, err := sys.KnownInode(path)
	ok(t, err)
	return inode
}

// userEnv makes the test binary use the file that it names: "open:" or "map:" and
// its path.
const userEnv = "LACUNA_TEST_USER"

func beUser() {
	how, path, is := strings.Cut(os.Getenv(userEnv), ":")
	if !is {
		return
	}
	f, err := os.Open(path)
	if err == nil && how == "map" {
		_, err = syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		os.Exit(1)
	}
	fmt.Println(f.Name()) // keeps f from being collected
	os.Exit(0)
}

func startUser(t testing.TB, how, path string) (pid int, stop func()) {
	t.Helper()
	return startUserWith(t, how, path, nil)
}

// startUserElsewhere starts one that lives in a mount namespace of its own.
func startUserElsewhere(t testing.TB, path string) (pid int, stop func()) {
	t.Helper()
	return startUserWith(t, "open", path, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS})
}

func startUserWith(t testing.TB, how, path string, attr *syscall.SysProcAttr) (pid int, stop func()) {
	t.Helper()
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), userEnv+"="+how+":"+path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func() {
		t.Helper()
		ok(t, in.Close())
		ok(t, cmd.Wait())
	}
}
