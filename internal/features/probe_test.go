package features

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// Errors of other kernels than the one at hand.
func TestMeaningOfErrors(t *testing.T) {
	dir := t.TempDir()
	mark := func(err error) error { return preContentMark(dir, err) }
	erofs := func(err error) error { return erofsMeaning(dir, err) }
	tests := []struct {
		name    string
		meaning func(error) error
		errno   syscall.Errno
		want    Answer
		needs   bool // asks for a capability
	}{
		{"init: unknown flag", preContentInit, syscall.EINVAL, No, false},
		{"init: no fanotify", preContentInit, syscall.ENOSYS, No, false},
		{"init: no capability", preContentInit, syscall.EPERM, Unknown, true},
		{"init: too many groups", preContentInit, syscall.EMFILE, Unknown, false},
		{"mark: unknown event", mark, syscall.EINVAL, No, false},
		{"mark: file system", mark, syscall.EOPNOTSUPP, No, false},
		{"mark: no capability", mark, syscall.EPERM, Unknown, true},
		{"mark: no memory", mark, syscall.ENOMEM, Unknown, false},
		{"erofs: no such type", erofs, syscall.ENODEV, No, false},
		{"erofs: no fsopen", erofs, syscall.ENOSYS, No, false},
		{"erofs: block devices only", erofs, syscall.ENOTBLK, No, false},
		{"erofs: no capability", erofs, syscall.EPERM, Unknown, true},
		{"erofs: no memory", erofs, syscall.ENOMEM, Unknown, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.meaning(fmt.Errorf("call: %w", tt.errno))
			if got := AnswerOf(err); got != tt.want {
				t.Errorf("answer %s, want %s: %v", got, tt.want, err)
			}
			if needs := errors.As(err, new(*PrivilegeError)); needs != tt.needs {
				t.Errorf("asks for a capability: %t: %v", needs, err)
			}
			if tt.want == Unknown && !errors.Is(err, tt.errno) {
				t.Errorf("the errno is lost: %v", err)
			}
		})
	}
}
