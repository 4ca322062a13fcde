package featurestest

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/features"
)

func TestJudge(t *testing.T) {
	preContent := func(typ string) error {
		return fmt.Errorf("open the cache: %w", &features.UnsupportedError{Feature: features.FanotifyPreContent, Filesystem: typ})
	}
	privilege := &features.PrivilegeError{Feature: features.MountAPI, Capability: "CAP_SYS_ADMIN", Err: syscall.EPERM}
	tests := []struct {
		name    string
		err     error
		release string
		uid     int
		want    string // go, skip or fail
	}{
		{"yes", nil, "6.18.44", 0, "go"},
		{"old kernel", preContent(""), "6.12.1-amd64", 0, "skip"},
		{"oldest kernel with it", preContent(""), "6.14.0-rc7", 0, "fail"},
		{"next major", preContent(""), "7.0", 0, "fail"},
		{"other file system", preContent("tmpfs"), "6.18.44", 0, "skip"},
		{"file system that has it", preContent("xfs"), "6.18.44", 0, "fail"},
		{"file system that has it, old kernel", preContent("xfs"), "6.1.192", 0, "skip"},
		{"release that cannot be read", preContent(""), "mainline", 0, "fail"},
		{"old mount calls", &features.UnsupportedError{Feature: features.MountAPI}, "5.10.0-1-amd64", 0, "skip"},
		{"new mount calls", &features.UnsupportedError{Feature: features.MountAPI}, "5.12.0", 0, "fail"},
		{"old kernel for files of EROFS", &features.UnsupportedError{Feature: features.ErofsFileMounts}, "6.11.9", 0, "skip"},
		{"files of EROFS on tmpfs", &features.UnsupportedError{Feature: features.ErofsFileMounts, Filesystem: "tmpfs"}, "6.18.44", 0, "skip"},
		{"files of EROFS", &features.UnsupportedError{Feature: features.ErofsFileMounts}, "6.12.0", 0, "fail"},
		{"bare no", features.ErrNotSupported, "6.18.44", 0, "skip"},
		{"not root", privilege, "6.18.44", 7, "skip"},
		{"root without the capability", privilege, "6.18.44", 0, "fail"},
		{"could not tell", errors.New("too many open files"), "6.18.44", 7, "fail"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			skip, reason := judge(tt.err, tt.release, tt.uid)
			got := "fail"
			if reason == "" {
				got = "go"
			} else if skip {
				got = "skip"
			}
			if got != tt.want {
				t.Errorf("got %s (%s), want %s", got, reason, tt.want)
			}
		})
	}
}
