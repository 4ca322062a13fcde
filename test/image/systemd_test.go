package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/keeper/keepertest"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

const unitName = "lacuna.service"

// unitHere is what the unit file does not say for a test: where things lie, and that
// there are no other units.
const unitHere = `[Unit]
DefaultDependencies=no
[Service]
ExecStart=
ExecStart=%s
StandardOutput=append:%s
StandardError=append:%[2]s
`

// underSystemd is a daemon that a systemd of the test's own has started, with the
// unit file that is shipped. What it mounts is in that systemd's mount namespace.
type underSystemd struct {
	*mounted
	inside string // that namespace's root
	first  int    // its first process
}

func startUnderSystemd(t *testing.T, config string) *underSystemd {
	t.Helper()
	s := &underSystemd{mounted: &mounted{instance.New(t, config), t}}
	drop := filepath.Join(s.Dir, "units", unitName+".d")
	unit, err := os.ReadFile("../../packaging/" + unitName)
	args := s.Command(context.Background(), "daemon", "--keeper", "systemd").Args
	here := fmt.Sprintf(unitHere, strings.Join(args, " "), string(s.Log)) // its String is what the file has
	err = errors.Join(err, os.MkdirAll(drop, 0o700), os.WriteFile(filepath.Join(s.Dir, "units", unitName), unit, 0o600),
		os.WriteFile(filepath.Join(drop, "here.conf"), []byte(here), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	s.StartCommand(keepertest.Systemd(context.Background(), t, s.Dir, unitName))
	t.Cleanup(s.end)
	instance.Eventually(t, 10*time.Second, func() error {
		children := instance.ChildrenOf(s.Keeper.Process.Pid)
		if len(children) != 1 {
			return fmt.Errorf("%d children", len(children))
		}
		s.first = children[0]
		return nil
	})
	s.inside = fmt.Sprintf("/proc/%d/root", s.first)
	s.WaitReady()
	return s
}

// end ends systemd and all that is in its namespaces, and wants these to be gone.
func (s *underSystemd) end() {
	if s.t.Failed() {
		said, err := os.ReadFile(filepath.Join(s.Dir, "console"))
		out, err2 := keepertest.Systemctl(context.Background(), s.Dir, s.first, "status", "--no-pager", "--full", unitName).CombinedOutput()
		s.t.Logf("systemd said: %s\n%s%v", said, out, errors.Join(err, err2))
	}
	spaces := make(map[string]bool)
	for _, kind := range []string{"mnt", "pid", "ipc"} {
		here, err := os.Readlink("/proc/self/ns/" + kind)
		there, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", s.first, kind))
		if err := errors.Join(err, err2); err != nil || here == there {
			s.t.Errorf("namespaces of systemd: %q, and here %q: %v", there, here, err)
			continue
		}
		spaces[there] = true
	}
	if err := s.Keeper.Process.Kill(); err != nil {
		s.t.Error(err)
	}
	<-s.Ended
	instance.Eventually(s.t, 20*time.Second, func() error {
		links, err := filepath.Glob("/proc/[0-9]*/ns/*")
		for _, link := range links {
			// A process that has ended meanwhile has none.
			if space, err := os.Readlink(link); err == nil && spaces[space] {
				return fmt.Errorf("%s is still %s", link, space)
			}
		}
		return err
	})
}

// systemctl asks systemd for something.
func (s *underSystemd) systemctl(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := keepertest.Systemctl(ctx, s.Dir, s.first, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// property is what systemd knows of the unit.
func (s *underSystemd) property(name string) string {
	s.t.Helper()
	return s.systemctl("show", "--value", "-p", name, unitName)
}

// erofs are the lines of the instance's mounts in the namespace.
func (s *underSystemd) erofs() (lines []string) {
	s.t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", s.first))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, " - erofs ") && strings.Contains(line, " "+s.Dir+"/") {
			lines = append(lines, line)
		}
	}
	return lines
}

// strike does something to the daemon after which another worker is there.
func (s *underSystemd) strike(how string) {
	s.t.Helper()
	before := s.Status().WorkerPID
	switch how {
	case "restart", "reload":
		s.systemctl(how, unitName)
	case "kill":
		s.systemctl("kill", "--kill-whom=main", "--signal=KILL", unitName)
	case "reexec": // as an upgrade of systemd does it
		s.systemctl("daemon-reexec")
		s.systemctl("restart", unitName)
	case "storm":
		for _, how := range []string{"restart", "reload", "restart"} {
			s.systemctl("--no-block", how, unitName)
		}
	}
	instance.Eventually(s.t, 30*time.Second, func() error {
		now, err := s.TryStatus()
		if err == nil && now.WorkerPID == before {
			err = fmt.Errorf("after %s worker %d is still there", how, before)
		}
		return err
	})
}

// systemdAttached is an attached file under systemd, and readers of it.
type systemdAttached struct {
	*underSystemd
	server *sourcetest.Server
	reader *ondemandtest.Reader
	file   string
	rng    *rand.Rand
}

const (
	attachedSize = 1 << 30
	attachedSeed = 3
)

// readSize is how much a sleeper reads, in bytes.
const readSize = 10_000

// sleeper is a read of the file that may sleep.
type sleeper struct {
	off int64
	end <-chan ondemandtest.Result
}

func (a *systemdAttached) read(off int64) sleeper {
	return sleeper{off, a.reader.Start(a.inside+a.file, off, readSize)}
}

// want wants right bytes.
func (s sleeper) want(a *systemdAttached, how string) {
	a.t.Helper()
	select {
	case r := <-s.end:
		right := make([]byte, readSize)
		_, _ = mem.PatternAt(attachedSeed).ReadAt(right, s.off) // it cannot fail
		if r.Errno != 0 || r.Err != nil || !bytes.Equal(r.Data, right) {
			a.t.Errorf("%s: read at %d: %v %v, %d bytes", how, s.off, r.Errno, r.Err, len(r.Data))
		}
	case <-time.After(time.Minute):
		a.t.Fatalf("%s: the read at %d hangs", how, s.off)
	}
}

// asleep strikes while four readers sleep in holes of the file, and wants right bytes.
func (a *systemdAttached) asleep(how string) {
	a.t.Helper()
	a.server.Throttle(time.Hour, 0)
	var sleepers []sleeper
	for range 4 {
		sleepers = append(sleepers, a.read(a.rng.Int64N(attachedSize-readSize)))
	}
	instance.Eventually(a.t, 20*time.Second, func() error {
		if a.Status().Requests.Pending == 0 {
			return errors.New("no read is pending")
		}
		return nil
	})
	struck := time.Now()
	a.strike(how)
	a.server.Throttle(0, 0)
	for _, s := range sleepers {
		s.want(a, how)
	}
	a.t.Logf("%s: all have read %v later", how, time.Since(struck).Round(time.Millisecond))
}

// What is mounted and attached goes on through everything that systemd does to the
// daemon but a stop, which waits for who uses it and then takes it away.
func TestRealSystemdIsTheKeeper(t *testing.T) {
	image := formatOf("estargz").packAll(t, stormTars(t, 16*systemdStrikes)...)
	slow, r := newFaulty(t)
	ref, tree := image.push(t, r), image.tree(t)
	slow.set(func() { slow.rate = 1 << 20 })
	// A request that a worker has made of the stopped server is soon made again.
	s := startUnderSystemd(t, "stall = \"1s\"\n")
	a := &systemdAttached{
		underSystemd: s, server: sourcetest.NewServerAt(t, mem.PatternAt(attachedSeed), attachedSize),
		reader: ondemandtest.StartReader(t), file: filepath.Join(s.Dir, "file"), rng: instance.Rand(t),
	}
	dir := s.mount(ref, "mnt")
	s.Lacuna("attach", a.server.URL(), a.file)
	s.strike("restart") // nobody uses anything
	if got := s.erofs(); len(got) != 2 {
		t.Fatalf("mounted after a restart: %q", got)
	}
	files := filesOf(tree)
	under := startReaders(t, order{Dir: s.inside + dir, Files: files, Readers: 4, Seed: a.rng.Uint64()})
	missing := 0
	for range systemdStrikes {
		for _, how := range []string{"restart", "kill", "reload", "storm", "reexec"} {
			for _, l := range s.Status().Mounted[0].Layers {
				if l.Present < l.Size {
					missing++
					break
				}
			}
			a.asleep(how)
		}
	}
	slow.set(func() { slow.rate = 0 })
	sum := under.finish(2 * time.Minute)
	sum.wantRight(t)
	t.Logf("%d times, %d of them while the image was incomplete", 5*systemdStrikes, missing)
	compare(t, s.inside+dir, tree)
	if st := s.Status(); len(st.Errors)+len(st.Unguarded)+len(st.Broken) > 0 {
		t.Errorf("status: %+v", st)
	}
	a.wantStop()
	s.systemctl("start", unitName)
	s.WaitReady()
	if st := s.Status(); len(st.Errors)+len(st.Unguarded)+len(st.Broken)+len(st.Mounted)+len(st.Attached) > 0 {
		t.Errorf("status after a stop and a start: %+v", st)
	}
	s.mount(ref, "mnt")
	compare(t, s.inside+dir, tree)
	s.systemctl("stop", unitName)
	s.wantStopped()
	s.Lacuna("check", "--verify")
}

// holdInside opens a file in a process in systemd's namespaces, which the daemon can see.
func (s *underSystemd) holdInside(path string) (end func()) {
	s.t.Helper()
	cmd := exec.Command("nsenter", "--target", fmt.Sprint(s.first), "--mount", "--pid",
		"setpriv", "--pdeathsig", "KILL", "sh", "-c", `exec <"$1" && echo ready && exec sleep 600`, "sh", path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.t.Cleanup(end)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		s.t.Fatalf("the holder said %q: %v", line, err)
	}
	return end
}

// wantStop stops the unit while a file is in use, and wants it to be served on until
// it is free. The image, which nobody uses, goes at once.
func (a *systemdAttached) wantStop() {
	a.t.Helper()
	end := a.holdInside(a.file)
	a.systemctl("--no-block", "stop", unitName)
	instance.Eventually(a.t, 20*time.Second, func() error {
		if log := a.Log.Tail(20); !strings.Contains(log, "waiting for what is in use") || !strings.Contains(log, "(sleep)") {
			return errors.New("it does not say who uses the file")
		}
		if got := a.erofs(); len(got) != 1 {
			return fmt.Errorf("mounted: %q", got)
		}
		return nil
	})
	a.read(a.rng.Int64N(attachedSize-readSize)).want(a, "stop")
	if got := a.property("ActiveState"); got != "deactivating" {
		a.t.Errorf("the unit is %s while the file is open", got)
	}
	end()
	a.wantStopped()
}

// wantStopped wants the unit to stop, and nothing to be left.
func (s *underSystemd) wantStopped() {
	s.t.Helper()
	instance.Eventually(s.t, 20*time.Second, func() error {
		if got := s.property("ActiveState"); got != "inactive" {
			return errors.New("the unit is " + got)
		}
		return nil
	})
	// systemd lets go of what it holds when it has nothing else to do.
	instance.Eventually(s.t, 10*time.Second, func() error {
		if got := s.property("NFileDescriptorStore"); got != "0" {
			return fmt.Errorf("systemd holds %s descriptors", got)
		}
		return nil
	})
	if got := s.property("Result"); got != "success" {
		s.t.Errorf("the unit ended with %s", got)
	}
	if got := s.erofs(); len(got) > 0 {
		s.t.Errorf("mounted: %q", got)
	}
	if pids := instance.ProcessesOf(s.Dir); len(pids) > 0 {
		s.t.Errorf("processes: %v", pids)
	}
	for _, name := range []string{"mnt", "file"} {
		if _, err := os.Lstat(filepath.Join(s.Dir, name)); !os.IsNotExist(err) {
			s.t.Errorf("%s is still there: %v", name, err)
		}
	}
}
