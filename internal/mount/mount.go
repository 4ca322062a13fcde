// Package mount makes, finds and removes mounts, and tells who uses one.
package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/lacunafs/lacuna/internal/sys"
)

// Mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	ID, Parent   int
	Major, Minor uint32
	// Root is the path inside its filesystem that is mounted.
	Root string
	// Point is where it is mounted.
	Point string
	// Type of filesystem.
	Type string
	// Source is what the filesystem was made of, such as a device.
	Source string

	options string // of the filesystem, with the kernel's escapes

	shared, master int // peer groups: its own, and the one that it is a slave of; 0: none
}

// Device is st_dev of the files of the mount.
func (m Mount) Device() uint64 { return sys.DeviceNumber(m.Major, m.Minor) }

// List returns this process's mounts, in the order in which they were made.
func List() (mounts []Mount, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return parse(f)
}

func parse(r io.Reader) ([]Mount, error) {
	var mounts []Mount
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return mounts, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("list mounts: %w", err)
		}
		m, err := parseLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
}

// parseLine reads "36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw".
func parseLine(line string) (Mount, error) {
	bad := fmt.Errorf("list mounts: line %q is not understood", line)
	head, tail, ok := strings.Cut(line, " - ")
	// Only the blank separates: other white space in a path stands for itself.
	fields := strings.Split(head, " ")
	kind, from, _ := strings.Cut(tail, " ")
	from, options, _ := strings.Cut(from, " ")
	if !ok || len(fields) < 6 || kind == "" {
		return Mount{}, bad
	}
	m := Mount{Root: unescape(fields[3]), Point: unescape(fields[4]), Type: kind, Source: unescape(from), options: options}
	id, err1 := strconv.Atoi(fields[0])
	parent, err2 := strconv.Atoi(fields[1])
	major, minor, ok := strings.Cut(fields[2], ":")
	ma, err3 := strconv.ParseUint(major, 10, 32)
	mi, err4 := strconv.ParseUint(minor, 10, 32)
	if !ok || errors.Join(err1, err2, err3, err4) != nil {
		return Mount{}, bad
	}
	m.ID, m.Parent, m.Major, m.Minor = id, parent, uint32(ma), uint32(mi)
	m.shared, m.master = group(fields[6:], "shared"), group(fields[6:], "master")
	return m, nil
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// At returns the topmost mount on point, and false where there is none.
func At(mounts []Mount, point string) (Mount, bool) {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Point == point {
			return mounts[i], true
		}
	}
	return Mount{}, false
}

// BindFile makes the file at source appear read-only at target, which must be a
// file. Neither is opened for reading.
func BindFile(source, target string) (err error) {
	fd, err := sys.OpenPath(source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	defer func() { err = errors.Join(err, fd.Close()) }()
	return sys.BindReadOnly(fd, target)
}

// Unmount takes the topmost mount off target; syscall.EBUSY, wrapped, where it is in
// use. With lazy it takes the name only, and the rest goes with the last user.
func Unmount(target string, lazy bool) error { return sys.Unmount(target, lazy) }
