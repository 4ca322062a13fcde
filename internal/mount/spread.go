package mount

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What is mounted in a directory of a shared mount is mounted in that one's peers and
// slaves too, in whatever namespace, as on most machines in those of system services.
// Such a copy goes when the original is unmounted, and makes it busy where it is in use
// (mount_namespaces(7); fs/pnode.c, propagate_umount and propagate_mount_busy).

// Follows tells whether c, a mount of the list theirs, goes with own, one of ours. A copy
// that was handed on twice, to the slave of a slave, is not known as one.
func Follows(ours []Mount, own Mount, theirs []Mount, c Mount) bool {
	if c.Device() != own.Device() || c.Root != own.Root {
		return false
	}
	from, found := byID(ours, own.Parent)
	to, alike := byID(theirs, c.Parent)
	handedOn := found && alike && from.shared != 0 && (to.shared == from.shared || to.master == from.shared)
	return handedOn && from.within(own) == to.within(c)
}

func byID(mounts []Mount, id int) (Mount, bool) {
	n := slices.IndexFunc(mounts, func(m Mount) bool { return m.ID == id })
	if n < 0 {
		return Mount{}, false
	}
	return mounts[n], true
}

// within is where in m's filesystem c is mounted, which is m's child.
func (m Mount) within(c Mount) string {
	return filepath.Join(m.Root, strings.TrimPrefix(c.Point, m.Point))
}

// group is the number after kind in the optional fields of a mount, such as shared:3;
// 0: there is none.
func group(fields []string, kind string) int {
	for _, f := range fields {
		if text, ok := strings.CutPrefix(f, kind+":"); ok {
			if n, err := strconv.ParseUint(text, 10, 31); err == nil {
				return int(n)
			}
		}
	}
	return 0
}
