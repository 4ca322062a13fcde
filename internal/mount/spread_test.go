package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

// startApart starts a process in a mount namespace with copies of all mounts that have
// the given propagation (unshare(1)).
func startApart(t *testing.T, propagation string) (pid int, stop func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation", propagation, "sh", "-c", "echo; read line")
	in, err := cmd.StdinPipe()
	ok(t, err)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	return cmd.Process.Pid, func() {
		t.Helper()
		ok(t, in.Close())
		var ended *exec.ExitError // the shell read nothing
		if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
			t.Error(err)
		}
	}
}

// Copies that are made and taken away with a mount do not hold it; others do.
func TestCopiesThatFollowAreNoUsers(t *testing.T) {
	featurestest.NeedRoot(t)
	dir := t.TempDir()
	around, again := filepath.Join(dir, "around"), filepath.Join(dir, "again")
	target := filepath.Join(around, "in/target")
	ok(t, errors.Join(os.Mkdir(around, 0o700), os.Mkdir(again, 0o700)))
	mountOver(t, around, "tmpfs", "")
	ok(t, syscall.Mount("", around, "", syscall.MS_SHARED, ""))
	ok(t, os.MkdirAll(target, 0o700))
	ok(t, syscall.Mount(filepath.Join(around, "in"), again, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { ok(t, Unmount(again, false)) })
	slave, stopSlave := startApart(t, "slave")
	defer stopSlave()
	peer, stopPeer := startApart(t, "unchanged")
	defer stopPeer()
	made, err := oneFile(t, dir, []byte("content")).Make()
	ok(t, err)
	ok(t, made.MoveTo(target))
	ok(t, made.Close())
	// Others may have copies of all mounts meanwhile.
	isUser := func(pid int) bool {
		t.Helper()
		users, err := Elsewhere(made.Device)
		ok(t, err)
		return slices.ContainsFunc(users, func(u User) bool { return u.PID == pid })
	}
	mounts, err := List()
	ok(t, err)
	first, _ := At(mounts, target)
	second, found := At(mounts, filepath.Join(again, "target"))
	if !found || !Follows(mounts, first, mounts, second) {
		t.Errorf("in the same namespace: %v, %+v", found, second)
	}
	private, stopPrivate := startApart(t, "private")
	if isUser(slave) || isUser(peer) || !isUser(private) {
		t.Errorf("users: slave %v, peer %v, private %v", isUser(slave), isUser(peer), isUser(private))
	}
	stopPrivate()
	ok(t, Unmount(target, false))
	for _, pid := range []int{slave, peer} {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "mountinfo"))
		ok(t, err)
		theirs, err := parse(f)
		ok(t, errors.Join(err, f.Close()))
		if slices.ContainsFunc(theirs, func(m Mount) bool { return m.Device() == made.Device }) {
			t.Errorf("process %d still has it", pid)
		}
	}
}
