package proto

import (
	"strconv"
	"syscall"
)

// maxErrno is the highest number that the kernel takes for an errno
// (include/linux/err.h, MAX_ERRNO).
const maxErrno = 4095

// errnoNames are the errors of files and networks, in the order of their
// numbers on x86-64.
var errnoNames = []struct {
	name  string
	errno syscall.Errno
}{
	{"EPERM", syscall.EPERM},
	{"ENOENT", syscall.ENOENT},
	{"ESRCH", syscall.ESRCH},
	{"EINTR", syscall.EINTR},
	{"EIO", syscall.EIO},
	{"ENXIO", syscall.ENXIO},
	{"E2BIG", syscall.E2BIG},
	{"ENOEXEC", syscall.ENOEXEC},
	{"EBADF", syscall.EBADF},
	{"ECHILD", syscall.ECHILD},
	{"EAGAIN", syscall.EAGAIN},
	{"ENOMEM", syscall.ENOMEM},
	{"EACCES", syscall.EACCES},
	{"EFAULT", syscall.EFAULT},
	{"ENOTBLK", syscall.ENOTBLK},
	{"EBUSY", syscall.EBUSY},
	{"EEXIST", syscall.EEXIST},
	{"EXDEV", syscall.EXDEV},
	{"ENODEV", syscall.ENODEV},
	{"ENOTDIR", syscall.ENOTDIR},
	{"EISDIR", syscall.EISDIR},
	{"EINVAL", syscall.EINVAL},
	{"ENFILE", syscall.ENFILE},
	{"EMFILE", syscall.EMFILE},
	{"ENOTTY", syscall.ENOTTY},
	{"ETXTBSY", syscall.ETXTBSY},
	{"EFBIG", syscall.EFBIG},
	{"ENOSPC", syscall.ENOSPC},
	{"ESPIPE", syscall.ESPIPE},
	{"EROFS", syscall.EROFS},
	{"EMLINK", syscall.EMLINK},
	{"EPIPE", syscall.EPIPE},
	{"EDOM", syscall.EDOM},
	{"ERANGE", syscall.ERANGE},
	{"EDEADLK", syscall.EDEADLK},
	{"ENAMETOOLONG", syscall.ENAMETOOLONG},
	{"ENOLCK", syscall.ENOLCK},
	{"ENOSYS", syscall.ENOSYS},
	{"ENOTEMPTY", syscall.ENOTEMPTY},
	{"ELOOP", syscall.ELOOP},
	{"ENODATA", syscall.ENODATA},
	{"ETIME", syscall.ETIME},
	{"ENOLINK", syscall.ENOLINK},
	{"EREMOTE", syscall.EREMOTE},
	{"ECOMM", syscall.ECOMM},
	{"EPROTO", syscall.EPROTO},
	{"EBADMSG", syscall.EBADMSG},
	{"EOVERFLOW", syscall.EOVERFLOW},
	{"EILSEQ", syscall.EILSEQ},
	{"EMSGSIZE", syscall.EMSGSIZE},
	{"EOPNOTSUPP", syscall.EOPNOTSUPP},
	{"EADDRINUSE", syscall.EADDRINUSE},
	{"EADDRNOTAVAIL", syscall.EADDRNOTAVAIL},
	{"ENETDOWN", syscall.ENETDOWN},
	{"ENETUNREACH", syscall.ENETUNREACH},
	{"ENETRESET", syscall.ENETRESET},
	{"ECONNABORTED", syscall.ECONNABORTED},
	{"ECONNRESET", syscall.ECONNRESET},
	{"ENOBUFS", syscall.ENOBUFS},
	{"ENOTCONN", syscall.ENOTCONN},
	{"ESHUTDOWN", syscall.ESHUTDOWN},
	{"ETIMEDOUT", syscall.ETIMEDOUT},
	{"ECONNREFUSED", syscall.ECONNREFUSED},
	{"EHOSTDOWN", syscall.EHOSTDOWN},
	{"EHOSTUNREACH", syscall.EHOSTUNREACH},
	{"EALREADY", syscall.EALREADY},
	{"ESTALE", syscall.ESTALE},
	{"EREMOTEIO", syscall.EREMOTEIO},
	{"EDQUOT", syscall.EDQUOT},
	{"ENOMEDIUM", syscall.ENOMEDIUM},
	{"EMEDIUMTYPE", syscall.EMEDIUMTYPE},
	{"ECANCELED", syscall.ECANCELED},
	{"ENOKEY", syscall.ENOKEY},
	{"EKEYEXPIRED", syscall.EKEYEXPIRED},
	{"EKEYREVOKED", syscall.EKEYREVOKED},
	{"EKEYREJECTED", syscall.EKEYREJECTED},
}

// ErrnoName is the errno's C name, or its number where it has none here.
func ErrnoName(errno syscall.Errno) string {
	for _, e := range errnoNames {
		if e.errno == errno {
			return e.name
		}
	}
	return strconv.Itoa(int(errno))
}

// parseErrno reads a C name, or a number in C's base 0 up to MAX_ERRNO.
func parseErrno(s string) (syscall.Errno, bool) {
	for _, e := range errnoNames {
		if e.name == s {
			return e.errno, true
		}
	}
	n, ok := parseNumber(s)
	return syscall.Errno(n), ok && n <= maxErrno
}
