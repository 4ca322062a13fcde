package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const systemd = "/lib/systemd/systemd"

// systemdScript runs a systemd of its own for one unit and ends with it. It is
// a user instance, which sets up no machine; it sees no unit but ours; it is in
// namespaces that end with it; and of this machine's files it can write none
// outside $1.
const systemdScript = `set -e
mount --bind "$1" "$1"
mount -t tmpfs run /run
mkdir -p /run/systemd/system # sd_booted(3): a user instance wants to see this
touch "$1/log"
mount --bind "$1/log" /dev/console
mount -o remount,bind,ro /
for cgroup in $2; do echo 0 >"$cgroup/cgroup.procs"; done
SYSTEMD_LOG_TARGET=console ` + systemd + ` --user --unit=lacuna-test.service
`

const systemdUnit = `[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
ExecStart=%[1]s
Environment=%[2]s=1 %[3]s=suicidal
StandardOutput=append:%[4]s
Restart=on-failure
RestartSec=0
FileDescriptorStoreMax=16
`

var namespaces = []string{"--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--ipc", "--net"}

func TestSystemdHoldsDescriptors(t *testing.T) {
	dir := t.TempDir()
	units, out := filepath.Join(dir, "units"), filepath.Join(dir, "out")
	if err := os.Mkdir(units, 0o700); err != nil {
		t.Fatal(err)
	}
	cgroups := systemdProbe(t)
	unit := fmt.Sprintf(systemdUnit, self(t), testRole, testWorker, out)
	if err := os.WriteFile(filepath.Join(units, "lacuna-test.service"), []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare",
		append(slices.Clone(namespaces), "sh", "-c", systemdScript, "sh", dir, strings.Join(cgroups, " "))...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir,
		"SYSTEMD_UNIT_PATH=" + units, "SYSTEMD_GENERATOR_PATH=" + units, "SYSTEMD_ENVIRONMENT_GENERATOR_PATH=" + units}
	var log bytes.Buffer // with systemd's own messages in dir/log
	cmd.Stdout, cmd.Stderr = &log, &log
	runErr := cmd.Run()
	lines, err := os.ReadFile(out)
	if err != nil {
		t.Fatalf("%v; systemd: %v\n%s", err, runErr, log.Bytes())
	}
	text := string(lines)
	if runErr != nil {
		t.Errorf("systemd: %v\n%s", runErr, log.Bytes())
	}
	for i, want := range []string{"held= count=1\n", "held=" + allHeld + " count=2\n", "held=" + allHeld + " count=3\n",
		"held=event,extra,pipe-r,pipe-w,table count=4\n", "held=" + allHeld + " count=5\n", "drained 5 5\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("line %d: no %q", i, want)
		}
	}
	if t.Failed() {
		t.Logf("workers:\n%s\nsystemd:\n%s", text, log.Bytes())
	}
}

// systemdProbe makes a control group for a private systemd in each hierarchy
// that it would use, or skips and names what is not there.
func systemdProbe(t *testing.T) []string {
	t.Helper()
	if _, err := os.Stat(systemd); err != nil {
		t.Skipf("probe %s: %v", systemd, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("probe root: mount and pid namespaces need it")
	}
	if out, err := exec.Command("unshare", append(slices.Clone(namespaces), "true")...).CombinedOutput(); err != nil {
		t.Skipf("probe namespaces: %v: %s", err, out)
	}
	var made []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		// One name in all: systemd makes in each what it finds in the newest.
		group := filepath.Join(root, fmt.Sprintf("lacuna-test-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Skipf("probe control groups: %v", err)
		}
		t.Cleanup(func() { removeGroup(t, group) })
		made = append(made, group)
	}
	if len(made) == 0 {
		t.Skip("probe control groups: none is mounted below /sys/fs/cgroup")
	}
	return made
}

// removeGroup removes what systemd has made below group, then group itself.
func removeGroup(t *testing.T, group string) {
	entries, err := os.ReadDir(group)
	if err != nil {
		t.Error(err)
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(t, filepath.Join(group, e.Name()))
		}
	}
	// EBUSY until the last process in it is reaped.
	for range 10000 {
		if err = syscall.Rmdir(group); !errors.Is(err, syscall.EBUSY) {
			break
		}
	}
	if err != nil {
		t.Errorf("remove control group %s: %v", group, err)
	}
}

func TestUnitFileIsValid(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("probe systemd-analyze: %v", err)
	}
	unit, err := os.ReadFile("../../packaging/lacuna.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program may not be installed here.
	path := filepath.Join(t.TempDir(), "lacuna.service")
	unit = bytes.ReplaceAll(unit, []byte("/usr/local/bin/lacuna"), []byte("/bin/true"))
	if err := os.WriteFile(path, unit, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		// Known from systemd 254 on.
		if strings.Contains(line, "lacuna.service") && !strings.Contains(line, "FileDescriptorStorePreserve") {
			t.Errorf("complaint: %s", line)
		}
	}
}
