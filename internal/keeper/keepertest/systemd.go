// Package keepertest runs a systemd of a test's own, which is the keeper of what
// its one unit runs. It is a user instance, which sets up no machine; it sees no
// unit but the test's; it is in namespaces that end with it; and of this machine's
// files it can write none outside the test's directory.
package keepertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const systemd = "/lib/systemd/systemd"

// script is given the test's directory, the control groups and the unit. It ends
// all when its standard input ends: the test may be killed.
const script = `set -e
exec 3<&0 </dev/null
{ cat >/dev/null; while :; do kill -KILL -1; sleep 0.1; done; } <&3 & # also what is started after the first
exec 3<&-
mount --bind "$1" "$1"
mount -t tmpfs run /run
mkdir -p /run/systemd/system # sd_booted(3): a user instance wants to see this
mkdir -p "$1/run"
touch "$1/console"
mount --bind "$1/console" /dev/console
mount -o remount,bind,ro /
while read -r _ _ _ _ point rest; do
	case $rest in *" - erofs "*) umount --lazy "$point" || :;; esac # copies of what others try
done </proc/self/mountinfo
for cgroup in $2; do echo 0 >"$cgroup/cgroup.procs"; done
SYSTEMD_LOG_TARGET=console ` + systemd + ` --user --unit="$3"
`

var namespaces = []string{"--fork", "--kill-child", "--pid", "--mount-proc", "--mount", "--ipc"}

// Systemd is a command that runs a systemd which starts the unit, of dir/units. Its
// child is the first process of the namespaces: all that is in them ends when the
// command or the test is killed. Its runtime directory is dir/run; dir/console is what
// it says. more are flags of unshare(1).
// The test is skipped where such a thing cannot run.
func Systemd(ctx context.Context, t testing.TB, dir, unit string, more ...string) *exec.Cmd {
	t.Helper()
	cgroups := probe(t)
	units := filepath.Join(dir, "units")
	cmd := exec.CommandContext(ctx, "unshare",
		slices.Concat(namespaces, more, []string{"sh", "-c", script, "sh", dir, strings.Join(cgroups, " "), unit})...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"),
		"SYSTEMD_UNIT_PATH=" + units, "SYSTEMD_GENERATOR_PATH=" + units, "SYSTEMD_ENVIRONMENT_GENERATOR_PATH=" + units}
	if _, err := cmd.StdinPipe(); err != nil { // open until the command has ended, or this process
		t.Fatal(err)
	}
	return cmd
}

// probe makes a control group for a private systemd in each hierarchy that it
// would use, or skips and names what is not there.
func probe(t testing.TB) []string {
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

// groupPatience is how long the last process of a control group may take to be reaped.
const groupPatience = 10 * time.Second

// removeGroup removes what systemd has made below group, then group itself.
func removeGroup(t testing.TB, group string) {
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
	for end := time.Now().Add(groupPatience); ; <-time.After(time.Millisecond) {
		if err = syscall.Rmdir(group); !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Errorf("remove control group %s: %v", group, err)
	}
}

// Systemctl is a command that asks the systemd of whose namespaces inside is a process.
// From outside it would not be heard: its process number is none there.
func Systemctl(ctx context.Context, dir string, inside int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter",
		append([]string{"--target", strconv.Itoa(inside), "--mount", "--pid", "systemctl", "--user"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run")}
	return cmd
}
