package keeper

import (
	"errors"
	"fmt"
	"strings"

	"github.com/lacunafs/lacuna/internal/sys"
)

// ErrFull is returned when no further descriptor can be held: their number or
// the length of their names has reached its limit.
var ErrFull = errors.New("no room for a further descriptor")

// maxNames is the room for all names, with a colon behind each. They travel in
// one environment string, and a longer one makes execve fail with E2BIG
// (include/uapi/linux/binfmts.h, MAX_ARG_STRLEN: 32 pages).
const maxNames = 32*4096 - len(EnvFDNames+"=") - 1

type entry struct {
	name string
	fd   *sys.FD
}

// table is what is held, in the order in which it came. The zero value is empty.
type table struct {
	entries []entry
	names   int // bytes of names and colons
}

// room tells whether one more descriptor called name fits.
func (t *table) room(name string, limit int) error {
	if len(t.entries) >= limit {
		return fmt.Errorf("%w: %d are held", ErrFull, len(t.entries))
	}
	if t.names+len(name)+1 > maxNames {
		return fmt.Errorf("%w: names take %d of %d bytes", ErrFull, t.names, maxNames)
	}
	return nil
}

func (t *table) add(name string, fd *sys.FD) {
	t.entries = append(t.entries, entry{name, fd})
	t.names += len(name) + 1
}

// has tells whether the open file behind fd is held already, under whatever
// name, as systemd looks at it (src/core/service.c, service_add_fd_store).
// Where the kernel cannot tell, it counts as new: holding twice harms nobody.
func (t *table) has(fd *sys.FD) bool {
	for _, e := range t.entries {
		if same, err := sys.SameOpenFile(e.fd.Int(), fd.Int()); err == nil && same {
			return true
		}
	}
	return false
}

// remove takes out all entries called name and returns their descriptors.
func (t *table) remove(name string) []*sys.FD {
	var out []*sys.FD
	var left []entry
	for _, e := range t.entries {
		if e.name != name {
			left = append(left, e)
			continue
		}
		out = append(out, e.fd)
		t.names -= len(name) + 1
	}
	t.entries = left
	return out
}

func (t *table) held() Held {
	h := make(Held)
	for _, e := range t.entries {
		h[e.name] = append(h[e.name], e.fd)
	}
	return h
}

// fdNames is the value of LISTEN_FDNAMES.
func (t *table) fdNames() string {
	names := make([]string, len(t.entries))
	for i, e := range t.entries {
		names[i] = e.name
	}
	return strings.Join(names, ":")
}

func (t *table) close() error {
	var errs []error
	for _, e := range t.entries {
		errs = append(errs, e.fd.Close())
	}
	*t = table{}
	return errors.Join(errs...)
}

func closeAll(fds []*sys.FD) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, fd.Close())
	}
	return errors.Join(errs...)
}
