package ondemand

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestErrnoTable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, syscall.EDQUOT},
		{syscall.EPERM, syscall.EPERM},
		{syscall.EAGAIN, syscall.EAGAIN},
		{syscall.EBUSY, syscall.EBUSY},
		{&os.PathError{Op: "write", Path: "data", Err: syscall.ENOSPC}, syscall.ENOSPC},
		{ErrDenied, syscall.EPERM},
		{ErrOverloaded, syscall.EAGAIN},
		{ErrDetached, syscall.EBUSY},
		{ErrFlushed, syscall.EIO},
		{ErrNotFilled, syscall.EIO},
		{ErrGone, syscall.EIO},
		{context.Canceled, syscall.EIO},
		{context.DeadlineExceeded, syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
		{syscall.EIO, syscall.EIO},
		{syscall.ETXTBSY, syscall.EIO},
		{syscall.ENOENT, syscall.EIO},
		{syscall.EACCES, syscall.EIO},
		{syscall.Errno(0), syscall.EIO},
		{errors.Join(errors.New("first"), syscall.EDQUOT), syscall.EDQUOT},
		{errors.Join(context.Canceled, syscall.ENOSPC), syscall.EIO},
		{errors.New("no space left on device"), syscall.EIO},
	} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := Errno(fmt.Errorf("fill x: %w", c.err)); got != c.want {
			t.Errorf("%v, wrapped: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestShortObjectID(t *testing.T) {
	long := ObjectID(strings.Repeat("0123456789abcdef", 4))
	if got := long.Short(); got != "0123456789ab" {
		t.Errorf("got %s", got)
	}
	if got := ObjectID("blob.img").Short(); got != "blob.img" {
		t.Errorf("got %s", got)
	}
}
