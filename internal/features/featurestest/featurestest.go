// Package featurestest decides when a test may be skipped for want of a
// feature. A skip is earned: it names the probe that said no, and where the
// running kernel should have the feature it is a failure instead, so that a
// broken probe, or a broken machine, does not silently switch tests off.
package featurestest

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/features"
)

// SkipUnless ends the test unless err, the answer of a probe, is nil. A sure
// no skips it, except on a kernel and a file system that should have the
// feature. Without privilege, a process that is not root skips. Everything
// else fails.
func SkipUnless(t testing.TB, err error) {
	t.Helper()
	skip, reason := judge(err, features.Release(), os.Geteuid())
	switch {
	case reason == "":
	case skip:
		t.Skip(reason)
	default:
		t.Fatal(reason)
	}
}

// NeedRoot skips the test where the process does not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		t.Skipf("needs root, and runs as uid %d", uid)
	}
}

// judge says whether to skip, and why; no reason is no objection.
func judge(err error, release string, uid int) (skip bool, reason string) {
	if err == nil {
		return false, ""
	}
	no, unprivileged := new(features.UnsupportedError), new(features.PrivilegeError)
	switch {
	case errors.As(err, &no):
		if shouldHave(no, release) {
			return false, "the probe says no, and this kernel should have it: " + err.Error()
		}
		return true, err.Error()
	case errors.Is(err, features.ErrNotSupported):
		return true, err.Error()
	case errors.As(err, &unprivileged) && uid != 0:
		return true, err.Error()
	}
	return false, "the probe could not tell: " + err.Error()
}

// shouldHave tells whether mainline Linux of that release has the feature
// (Linux 6.14, 4f8afa33817a; Linux 5.12, 2a1867219c7b; Linux 6.12, fb176750266a). Here alone a version
// decides, because what it decides is whether to believe a probe.
func shouldHave(no *features.UnsupportedError, release string) bool {
	switch no.Feature {
	case features.FanotifyPreContent:
		switch no.Filesystem {
		case "", "ext4", "xfs", "btrfs":
			return atLeast(release, 6, 14)
		}
	case features.MountAPI:
		return atLeast(release, 5, 12)
	case features.ErofsFileMounts:
		switch no.Filesystem {
		case "", "ext4", "xfs", "btrfs":
			return atLeast(release, 6, 12)
		}
	}
	return false
}

// atLeast reads the first two numbers of a release such as 6.18.44-amd64. What
// cannot be read is not older.
func atLeast(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	second := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	gotMajor, err1 := strconv.Atoi(first)
	gotMinor, err2 := strconv.Atoi(second)
	if err1 != nil || err2 != nil {
		return true
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}
