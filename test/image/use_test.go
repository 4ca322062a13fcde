package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// inside runs a program with root as its root directory.
func inside(t testing.TB, root, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Path, cmd.Err = program, nil
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/root", "LANG=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	var out, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &told
	late := time.AfterFunc(time.Minute, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	defer late.Stop()
	if err := cmd.Run(); err != nil {
		t.Errorf("%s %v in %s: %v: %s", program, args, root, err, told.String())
	}
	return out.String()
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// Programs run from the mount: their pages, and their libraries', are fetched by
// the page faults of exec and mmap.
func TestProgramsRunInTheMount(t *testing.T) {
	tars := rootTars(t)
	for _, name := range []string{"estargz", "zstdchunked"} {
		f := formatOf(name)
		t.Run(name, func(t *testing.T) {
			image := f.packAll(t, tars...)
			tree := image.tree(t)
			m := start(t, "")
			dir := m.mount(image.push(t, ocitest.New(t)), "mnt")
			if out := inside(t, dir, "/bin2/static"); out != "static\n" {
				t.Errorf("static program: %q", out)
			}
			if out := inside(t, dir, "/usr/bin/bash", "-c", "echo $((6*7)); cat /etc/passwd; ls / | wc -l"); !strings.HasPrefix(out, "42\nroot:x:0:0") {
				t.Errorf("bash: %q", out)
			}
			if tree.children["usr"].children["bin"].children["python3.11"] != nil {
				if out := inside(t, dir, "/usr/bin/python3.11", "-c", "import json, email, decimal; print(json.dumps([str(decimal.Decimal(1)/8)]))"); out != "[\"0.125\"]\n" {
					t.Errorf("python: %q", out)
				}
			}
			overlay(t, m.Dir, dir)
			namespaces(t, dir)
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

// overlay puts a writable layer on top, as containers do.
func overlay(t *testing.T, at, dir string) {
	t.Helper()
	parts := map[string]string{}
	for _, name := range []string{"upper", "work", "merged"} {
		parts[name] = filepath.Join(at, name)
		if err := os.Mkdir(parts[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, parts["upper"], parts["work"])
	if err := syscall.Mount("overlay", parts["merged"], "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(parts["merged"], 0); err != nil {
			t.Error(err)
		}
	}()
	out := inside(t, parts["merged"], "/usr/bin/bash", "-c",
		"set -e; echo new > /tmp/new; echo more >> /etc/passwd; ls /usr/share/zoneinfo > /tmp/list; cat /tmp/new; tail -n 1 /etc/passwd; wc -l < /etc/passwd")
	if out != "new\nmore\n2\n" {
		t.Errorf("in the overlay: %q", out)
	}
	if err := os.RemoveAll(filepath.Join(parts["merged"], "usr/share/zoneinfo/Europe")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/share/zoneinfo/Europe")); err != nil {
		t.Errorf("it is gone below the overlay: %v", err)
	}
}

// namespaces looks at the mount from another mount namespace.
func namespaces(t *testing.T, dir string) {
	t.Helper()
	const script = `cd "$1" && find . -type f -path './usr/share/git*' -exec sha256sum {} + | sort`
	here := run(t, "sh", "-c", script, "sh", dir)
	there := run(t, "unshare", "--mount", "sh", "-c", script, "sh", dir)
	if here != there {
		t.Errorf("another mount namespace sees\n%s\nnot\n%s", there, here)
	}
}

// Page faults of a mapping are filled too.
func TestMappedFilesAreFilled(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			data := toctest.Random(5, 3<<20+77)
			image := f.packAll(t, tarOf(t, file("before", "x"), file("data", string(data))))
			m := start(t, "")
			dir := m.mount(image.push(t, ocitest.New(t)), "mnt")
			r := ondemandtest.StartReader(t)
			for _, off := range []int64{2 << 20, 0, 3 << 20, 1<<20 + 4096} {
				n := int(min(50_000, int64(len(data))-off))
				got := r.Mmap(filepath.Join(dir, "data"), off, n)
				if got.Errno != 0 || !bytes.Equal(got.Data, data[off:off+int64(n)]) {
					t.Errorf("mapped at %d: %v, %d bytes", off, got.Errno, len(got.Data))
				}
			}
			r.Kill()
			m.umount(dir)
		})
	}
}

// held is a mounted image of which a process has a file open that is missing.
type held struct {
	*mounted
	ref, dir string
	data     []byte
	holder   *exec.Cmd
	tell     func() string
}

// hold mounts an image, and has a shell open a file of it; tell has it read the file.
func hold(t *testing.T) *held {
	t.Helper()
	h := &held{data: toctest.Random(9, 1<<20)}
	image := formatOf("estargz").packAll(t, tarOf(t, file("other", string(toctest.Random(10, 1<<20))), file("data", string(h.data))))
	h.mounted = start(t, "")
	h.ref = image.push(t, ocitest.New(t))
	h.dir = h.mount(h.ref, "mnt")
	h.holder = exec.Command("sh", "-c", `exec 3<"$1"; echo open; read line; sha256sum <&3`, "sh", filepath.Join(h.dir, "data"))
	in, err := h.holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.holder.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = in.Close()
		late := time.AfterFunc(30*time.Second, func() { _ = h.holder.Process.Kill() })
		_ = h.holder.Wait()
		late.Stop()
	})
	t.Cleanup(stop)
	buf := make([]byte, 200)
	if n, err := out.Read(buf); string(buf[:n]) != "open\n" {
		t.Fatalf("the holder says %q, %v", buf[:n], err)
	}
	h.tell = func() string {
		_, _ = in.Write([]byte("\n"))
		n, _ := out.Read(buf)
		stop()
		return strings.Fields(string(buf[:n]) + " nothing")[0]
	}
	return h
}

func (h *held) want(sum string) {
	h.t.Helper()
	if want := fmt.Sprintf("%x", sha256.Sum256(h.data)); sum != want {
		h.t.Errorf("the open file reads as %s, want %s", sum, want)
	}
}

func TestUmountOfABusyMountNamesWho(t *testing.T) {
	h := hold(t)
	_, err := h.Try("umount", h.dir)
	if instance.ExitOf(err) != 6 || !strings.Contains(err.Error(), fmt.Sprint(h.holder.Process.Pid)) {
		t.Errorf("umount: %v", err)
	}
	h.want(h.tell())
	h.umount(h.dir)
}

func TestLazyUmountLetsReadersGoOn(t *testing.T) {
	h := hold(t)
	h.Lacuna("umount", "--lazy", h.dir)
	if points := instance.MountsBelow(h.Dir); len(points) > 0 {
		t.Errorf("mounted: %v", points)
	}
	worker := h.WaitWorker(0)
	h.Kill(worker) // and the next worker goes on with it
	h.WaitWorker(worker)
	h.want(h.tell())
	instance.Eventually(t, 30*time.Second, func() error {
		if s, err := h.TryStatus(); err != nil || len(s.Mounted) > 0 {
			return fmt.Errorf("status has %+v, %w", s.Mounted, err)
		}
		return nil
	})
	if _, err := os.Lstat(h.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", h.dir, err)
	}
	dir := h.mount(h.ref, "mnt")
	h.umount(dir)
}

func TestStopWithAnOpenFile(t *testing.T) {
	h := hold(t)
	h.Signal(syscall.SIGTERM)
	// What it does then, wait or leave, the reader gets right bytes or an error.
	instance.Pause(500 * time.Millisecond)
	sum := h.tell()
	if want := fmt.Sprintf("%x", sha256.Sum256(h.data)); sum != want && sum != "nothing" {
		t.Errorf("the open file reads as %s", sum)
	}
	select {
	case <-h.Ended:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	t.Logf("it ended with %v; the reader got %.12s", h.Keeper.ProcessState, sum)
	if points := instance.MountsBelow(h.Dir); len(points) > 0 {
		t.Errorf("mounted: %v", points)
	}
}

// Both processes die while somebody has a file open: what was not guarded is told,
// and from the next start on the mount is served again.
func TestBothProcessesAreKilledUnderAnOpenFile(t *testing.T) {
	h := hold(t)
	status := h.Status()
	h.Kill(status.KeeperPID, status.WorkerPID)
	<-h.Ended
	h.StartDaemon()
	after := h.Status()
	if len(after.Unguarded) == 0 {
		t.Errorf("status does not tell that nobody guarded the mount: %+v", after)
	}
	h.want(h.tell())
	h.umount(h.dir)
}

// Zeros that were read while nobody served do not stay in the page cache.
func TestZerosAreForgottenInAMount(t *testing.T) {
	h := hold(t)
	status := h.Status()
	h.Kill(status.KeeperPID, status.WorkerPID)
	<-h.Ended
	name := filepath.Join(h.dir, "data")
	got, err := os.ReadFile(name)
	if err != nil || bytes.Equal(got, h.data) {
		t.Fatalf("nothing is missing: %v", err)
	}
	h.StartDaemon()
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, h.data) {
		t.Errorf("it reads wrong: %v", err)
	}
	after := h.Status()
	if len(after.Unguarded) != 1 || !strings.Contains(fmt.Sprint(after.Unguarded[0].Users), fmt.Sprint(h.holder.Process.Pid)) {
		t.Errorf("unguarded: %+v; process %d has a file open", after.Unguarded, h.holder.Process.Pid)
	}
	h.want(h.tell())
	h.umount(h.dir)
}

// elsewhere is a process in a mount namespace of its own, with copies of all mounts.
// ask has it run a shell's line.
func elsewhere(t *testing.T) (ask func(line string) string, end func()) {
	t.Helper()
	return elsewhereAs(t, "private")
}

// elsewhereAs is elsewhere with copies of that propagation (unshare(1)).
func elsewhereAs(t *testing.T, propagation string) (ask func(line string) string, end func()) {
	t.Helper()
	sh := exec.Command("unshare", "--mount", "--propagation", propagation, "sh", "-c", `echo up; while read line; do eval "$line"; done`)
	in, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sh.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	sh.Stderr = sh.Stdout
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = in.Close()
		late := time.AfterFunc(30*time.Second, func() { _ = sh.Process.Kill() })
		_ = sh.Wait()
		late.Stop()
	})
	t.Cleanup(end)
	lines := bufio.NewReader(out)
	next := func() string {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	next()
	return func(line string) string {
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		return next()
	}, end
}

// A mount in another namespace stays where it is, and is served, when it is taken
// away here: by umount --lazy, and by the start after both processes were killed.
func TestMountInAnotherNamespaceStays(t *testing.T) {
	for name, away := range map[string]func(*held){
		"lazy": func(h *held) { h.Lacuna("umount", "--lazy", h.dir) },
		"killed": func(h *held) {
			status := h.Status()
			h.Kill(status.KeeperPID, status.WorkerPID)
			<-h.Ended
			h.StartDaemon()
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t)
			h.want(h.tell())
			ask, end := elsewhere(t)
			away(h)
			if points := instance.MountsBelow(h.Dir); len(points) > 0 {
				t.Errorf("mounted: %v", points)
			}
			want := fmt.Sprintf("%x", sha256.Sum256(toctest.Random(10, 1<<20)))
			if got := ask("sha256sum <" + filepath.Join(h.dir, "other")); !strings.HasPrefix(got, want) {
				t.Errorf("the other namespace reads %q, want %s", got, want)
			}
			end()
			instance.Eventually(t, 30*time.Second, func() error {
				if _, err := os.Lstat(h.dir); !os.IsNotExist(err) {
					return fmt.Errorf("%s is still there: %w", h.dir, err)
				}
				return nil
			})
		})
	}
}

// What is complete goes on in another namespace without the instance, which stops
// at once; the next start removes the directory.
func TestCompleteMountOutlivesTheInstance(t *testing.T) {
	h := hold(t)
	if _, err := os.ReadFile(filepath.Join(h.dir, "other")); err != nil {
		t.Fatal(err)
	}
	h.want(h.tell())
	ask, end := elsewhere(t)
	h.Stop()
	want := fmt.Sprintf("%x", sha256.Sum256(h.data))
	if got := ask("sha256sum <" + filepath.Join(h.dir, "data")); !strings.HasPrefix(got, want) {
		t.Errorf("the other namespace reads %q, want %s", got, want)
	}
	end()
	h.StartDaemon()
	if s := h.Status(); len(s.Unguarded) > 0 {
		t.Errorf("unguarded: %+v", s.Unguarded)
	}
	if _, err := os.Lstat(h.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", h.dir, err)
	}
}

// What was mounted is mounted again without a network, and what is there is right.
func TestMountOffline(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			registry, r := newFaulty(t)
			image := f.packAll(t, stormTars(t, 8)...)
			tree, ref := image.tree(t), image.push(t, r)
			m := start(t, "deadline = \"500ms\"\nstall = \"200ms\"\n")
			dir := m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
			registry.set(func() { registry.down = true })
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
			m.Stop()
			m.StartDaemon()
			dir = m.mount(ref, "mnt")
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

// Tokens and signed addresses expire while files are read.
func TestLoginsExpireWhileFilesAreRead(t *testing.T) {
	const nowAndThen, atOnce = "now and then", "at once"
	for name, pace := range map[string]time.Duration{nowAndThen: 250 * time.Millisecond, atOnce: 10 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			slow, r := newFaulty(t)
			image := formatOf("estargz").packAll(t, stormTars(t, 16)...)
			tree, ref := image.tree(t), image.push(t, r)
			slow.set(func() { slow.rate = 8 << 20 })
			r.WantToken("", "")
			r.RedirectBlobs()
			m := start(t, "")
			dir := m.mount(ref, "mnt")
			stop := expire(r, pace)
			sum := startReaders(t, order{Dir: dir, Files: filesOf(tree), Readers: 4, Seed: 2, Once: true}).wait(2 * time.Minute)
			stop()
			tokens := r.Count(func(q ocitest.Request) bool { return q.Server == "token" })
			refused := r.Count(func(q ocitest.Request) bool { return q.Status == 401 || q.Status == 403 })
			t.Logf("%d tokens, %d requests refused", tokens, refused)
			if name == nowAndThen {
				sum.wantRight(t)
			} else if sum.Wrong+sum.Other > 0 {
				t.Errorf("%s: %q", sum.String(), sum.Examples)
			}
			if refused < 3 {
				t.Error("nothing has expired")
			}
			instance.Eventually(t, time.Minute, func() error {
				if sum := readOnce(t, dir, filesOf(tree), 4); sum.EIO+sum.Other > 0 {
					return fmt.Errorf("%s", sum.String())
				}
				return nil
			})
			compare(t, dir, tree)
			m.umount(dir)
		})
	}
}

// expire makes logins and addresses expire again and again, until it is stopped.
func expire(r *ocitest.Registry, pace time.Duration) (stop func()) {
	end := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(pace):
				r.ExpireTokens()
				r.ExpireAddresses()
			}
		}
	})
	return func() {
		close(end)
		all.Wait()
	}
}
