package ondemand

import (
	"context"
	"errors"
	"syscall"
)

// Errors that a Filler returns to choose the errno that a reader gets.
var (
	// ErrDenied: the source refuses access. The reader gets EPERM.
	ErrDenied = errors.New("access to the source denied")
	// ErrOverloaded: the source asks to come back later. The reader gets EAGAIN.
	ErrOverloaded = errors.New("source overloaded")
	// ErrDetached: the object is being taken out of service. The reader gets EBUSY.
	ErrDetached = errors.New("object is being detached")
	// ErrFlushed: the request was ended because no one is left to fill it.
	// The reader gets EIO.
	ErrFlushed = errors.New("request flushed")
	// ErrGone: the request was ended because its reader is not there any more.
	// Whoever may be there all the same gets EIO.
	ErrGone = errors.New("reader is gone")
	// ErrNotFilled: a fill was reported done, and a hole remains. The
	// reader gets EIO.
	ErrNotFilled = errors.New("filled, but data is missing")
)

// Errno is the one table from errors to what a reader's system call returns:
//
//	nil                                  0
//	ENOSPC, EDQUOT in the chain          the same: the cache could not hold the data
//	EPERM, ErrDenied                     EPERM
//	EAGAIN, ErrOverloaded                EAGAIN
//	EBUSY, ErrDetached                   EBUSY
//	anything else                        EIO
//
// The set is what a fanotify response may carry (fs/notify/fanotify,
// FAN_DENY_ERRNO: EIO, EPERM, EBUSY, ETXTBSY, EAGAIN, ENOSPC, EDQUOT); any
// other number would leave the reader asleep.
func Errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EIO
	case errors.Is(err, ErrDenied):
		return syscall.EPERM
	case errors.Is(err, ErrOverloaded):
		return syscall.EAGAIN
	case errors.Is(err, ErrDetached):
		return syscall.EBUSY
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.ENOSPC, syscall.EDQUOT, syscall.EPERM, syscall.EAGAIN, syscall.EBUSY:
			return errno
		}
	}
	return syscall.EIO
}
