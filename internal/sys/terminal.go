package sys

import "golang.org/x/sys/unix"

// IsTerminal tells whether fd is one (ioctl_tty(2), TCGETS: ENOTTY for all else).
func IsTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}
