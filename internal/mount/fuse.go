package mount

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/lacunafs/lacuna/internal/sys"
)

// FUSE is a FUSE filesystem that is to be made, read-only. It needs CAP_SYS_ADMIN in
// the namespace of the user that it is made in.
type FUSE struct {
	// Connection is what sys.OpenFuse returned. Whoever holds it serves the filesystem.
	Connection *sys.FD
	// Source is shown by mount(8) and findmnt(8).
	Source string
	// UID and GID are the owner of the mount; others may use it where Others says so.
	UID, GID int
	Others   bool
	// ReadAhead is how far the kernel reads ahead in a file, in KiB; 0 leaves its
	// default of 128.
	ReadAhead int
	// Attributes are sys.Mount* bits besides MountReadOnly.
	Attributes int
}

// rootIsDirectory is the rootmode option: S_IFDIR, in octal (fs/fuse/inode.c).
const rootIsDirectory = "40000"

// Make makes the filesystem. The kernel's first request, INIT, waits in the connection
// then: until it is answered, whoever looks into the filesystem sleeps.
func (f FUSE) Make() (m *Filesystem, err error) {
	fsc, err := sys.Fsopen("fuse")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fsc.Close()) }()
	for _, o := range []struct{ key, value string }{
		{"source", f.Source}, {"subtype", "lacuna"},
		{"fd", strconv.Itoa(f.Connection.Int())}, {"rootmode", rootIsDirectory},
		{"user_id", strconv.Itoa(f.UID)}, {"group_id", strconv.Itoa(f.GID)},
	} {
		if err := sys.FsconfigString(fsc, o.key, o.value); err != nil {
			return nil, err
		}
	}
	// The kernel checks permissions as it does elsewhere.
	flags := []string{"ro", "default_permissions"}
	if f.Others {
		flags = append(flags, "allow_other")
	}
	for _, key := range flags {
		if err := sys.FsconfigFlag(fsc, key); err != nil {
			return nil, err
		}
	}
	if err := sys.FsconfigCreate(fsc); err != nil {
		return nil, fmt.Errorf("mount %s through FUSE: %w", f.Source, err)
	}
	tree, err := sys.Fsmount(fsc, sys.MountReadOnly|f.Attributes)
	if err != nil {
		return nil, err
	}
	return &Filesystem{tree: tree}, nil
}

// Settle finds out what the filesystem is known by, and sets its read-ahead. It is
// called once INIT has been answered: it asks the filesystem.
func (f FUSE) Settle(m *Filesystem) error {
	inode, err := sys.InodeOf(m.tree.Int())
	if err != nil {
		return err
	}
	major, minor := inode.DeviceNumbers()
	// fs/fuse/inode.c, fuse_bdi_init.
	m.Superblock = fmt.Sprintf("%d:%d", major, minor)
	return m.describe(f.ReadAhead)
}
