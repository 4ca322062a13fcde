package keeper

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestUpgradeRunsTheProgramOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lacuna")
	copyProgram(t, path, "1")
	f := startFamily(t, path, "")
	keeper := f.cmd.Process.Pid
	up := f.expect("up ")
	if got := field(t, up, "version"); got != "1" {
		t.Fatalf("version %s", got)
	}
	for _, version := range []string{"2", "3", "4"} {
		copyProgram(t, path, version)
		old := number(t, up, "pid")
		f.signal(keeper, syscall.SIGHUP)
		f.expect("leaving")
		ended := f.expect("event " + WorkerEnded)
		if number(t, ended, "pid") != old {
			t.Errorf("another worker ended: %s", ended)
		}
		up = f.expect("up ")
		if field(t, up, "version") != version || field(t, up, "held") != allHeld || number(t, up, "keeper") != keeper {
			t.Errorf("after the upgrade: %s", up)
		}
		exe, err := os.Readlink("/proc/" + field(t, up, "keeper") + "/exe")
		if err != nil || exe != path {
			t.Errorf("keeper runs %s, %v", exe, err)
		}
	}
	if got := number(t, up, "count"); got != 4 {
		t.Errorf("%d workers", got)
	}
	// The upgraded keeper still reaps, restarts and knows exit statuses.
	f.send("exit 6")
	if ended := f.expect("event " + WorkerEnded); !strings.Contains(ended, "exit status 6") {
		t.Error(ended)
	}
	f.expect("up ")
	f.signal(keeper, syscall.SIGTERM)
	f.expect("last stop event pipe-r pipe-w table")
	lines := f.expectEnd()
	if slices.Contains(lines, "first ready") {
		t.Error("OnReady was called twice")
	}
	if got := f.exit(); got != 0 {
		t.Errorf("exit status %d", got)
	}
}

func TestUpgradeLeavesNoDescriptors(t *testing.T) {
	f := startFamily(t, self(t), "")
	keeper := f.cmd.Process.Pid
	f.expect("up ")
	before := openFiles(t, keeper)
	for range 3 {
		f.signal(keeper, syscall.SIGHUP)
		f.expect("event " + HandedOver)
		f.expect("up ")
	}
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("descriptors\nbefore %q\nafter  %q", before, after)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expectEnd()
}

func TestUpgradeToWhatCannotRunIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lacuna")
	copyProgram(t, path, "1")
	f := startFamily(t, path, "")
	keeper := f.cmd.Process.Pid
	up := f.expect("up ")
	before := openFiles(t, keeper)
	elf, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"no program":         "this is no program",
		"half a program":     string(elf[:len(elf)/2]),
		"one that fails":     "#!/bin/sh\necho no such thing >&2\nexit 3\n",
		"one that is not us": "#!/bin/sh\nexit 0\n",
		"another version":    "#!/bin/sh\necho 'lacuna keeper, state 999' >&3\n",
	} {
		replaceProgram(t, path, []byte(content))
		f.signal(keeper, syscall.SIGHUP)
		t.Logf("%s: %s", name, f.expect("event "+UpgradeRefused))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.signal(keeper, syscall.SIGHUP)
	f.expect("event " + UpgradeRefused)
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("descriptors\nbefore %q\nafter  %q", before, after)
	}
	// The worker is the same, and the keeper still works.
	f.send("drain")
	f.expect("drained 1 1")
	copyProgram(t, path, "2")
	f.signal(number(t, up, "pid"), syscall.SIGKILL)
	f.expect("up ")
	f.signal(keeper, syscall.SIGHUP)
	if got := field(t, f.expect("up "), "held"); got != allHeld {
		t.Errorf("held %s", got)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expectEnd()
}

func TestUpgradeKillsWorkerThatStays(t *testing.T) {
	f := startFamily(t, self(t), "stubborn")
	keeper := f.cmd.Process.Pid
	f.expect("up ")
	f.signal(keeper, syscall.SIGHUP)
	f.expect("event " + Killed)
	if got := field(t, f.expect("up "), "held"); got != allHeld {
		t.Errorf("held %s", got)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expectEnd()
}

// The signal comes while the program is being tried, executed or begins.
func TestStopDuringUpgradeIsNotLost(t *testing.T) {
	for range 10 {
		f := startFamily(t, self(t), "")
		f.expect("up ")
		f.signal(f.cmd.Process.Pid, syscall.SIGHUP)
		f.signal(f.cmd.Process.Pid, syscall.SIGHUP)
		f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
		f.expect("last stop event pipe-r pipe-w table")
		f.expectEnd()
		if got := f.exit(); got != 0 {
			t.Errorf("exit status %d", got)
		}
	}
}

func TestUpgradeWhileNoWorkerRuns(t *testing.T) {
	f := startFamily(t, self(t), "fails")
	for range 3 {
		f.expect("unattended ")
		f.signal(f.cmd.Process.Pid, syscall.SIGHUP)
		f.expect("event " + Upgraded)
	}
	f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
	f.expect("last stop event pipe-r pipe-w table")
	f.expectEnd()
}

func TestNewKeeperAfterTheOldWasKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lacuna")
	copyProgram(t, path, "1")
	f := startFamily(t, path, "")
	up := f.expect("up ")
	keeper := f.cmd.Process.Pid
	for round := range 3 {
		worker := number(t, up, "pid")
		f.signal(keeper, syscall.SIGKILL)
		line := f.expect("new keeper ")
		if got := field(t, line, "err"); got != "<nil>" {
			t.Fatal(line)
		}
		keeper = number(t, line, "pid")
		if round == 1 {
			// Twice in a row, with the same worker.
			f.signal(keeper, syscall.SIGKILL)
			keeper = number(t, f.expect("new keeper "), "pid")
		}
		if sid, err := getsid(keeper); err != nil || sid != keeper {
			t.Errorf("session %d of keeper %d, %v", sid, keeper, err)
		}
		f.signal(worker, syscall.SIGKILL)
		up = f.expect("up ")
		if number(t, up, "keeper") != keeper || field(t, up, "held") != allHeld {
			t.Fatalf("after the worker's death: %s", up)
		}
	}
	// A worker that is not the keeper's child: upgrade, then stop.
	f.signal(keeper, syscall.SIGKILL)
	keeper = number(t, f.expect("new keeper "), "pid")
	copyProgram(t, path, "2")
	f.signal(keeper, syscall.SIGHUP)
	f.expect("leaving")
	up = f.expect("up ")
	if field(t, up, "version") != "2" || field(t, up, "held") != allHeld {
		t.Errorf("after the upgrade: %s", up)
	}
	f.signal(keeper, syscall.SIGKILL)
	keeper = number(t, f.expect("new keeper "), "pid")
	f.signal(keeper, syscall.SIGTERM)
	f.expect("bye")
	f.expect("last stop event pipe-r pipe-w table")
	f.expect("keeper ends: 0 <nil>")
	f.expectEnd()
}

func getsid(pid int) (int, error) {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}
