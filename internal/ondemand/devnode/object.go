package devnode

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Object is one file of a bound directory.
type Object struct {
	id       ondemand.ObjectID
	leaf     string
	file     *os.File
	inode    sys.Inode
	presence *ondemand.Presence
	record   bitmap // the same in shared memory
}

var _ ondemand.Object = (*Object)(nil)

// ID names the object: its inode's number and its leaf name.
func (o *Object) ID() ondemand.ObjectID { return o.id }

// Leaf is the file's name in the directory.
func (o *Object) Leaf() string { return o.leaf }

// Size is the file's size when the directory was opened.
func (o *Object) Size() int64 { return o.presence.Size() }

// Has tells whether every byte of r is present.
func (o *Object) Has(r ondemand.Range) bool { return o.presence.Has(r) }

// Missing returns the missing parts of r, in whole blocks.
func (o *Object) Missing(r ondemand.Range) []ondemand.Range { return o.presence.Missing(r) }

// Complete tells whether every byte is present.
func (o *Object) Complete() bool { return o.presence.Complete() }

// Present is the number of bytes present.
func (o *Object) Present() int64 { return o.presence.Bytes() }

// File is the descriptor opened by OpenDir. The caller does not close it.
func (o *Object) File() *os.File { return o.file }

// withFD calls do with the descriptor's number, which stays open meanwhile.
func (o *Object) withFD(do func(raw int) error) error {
	rc, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = rc.Control(func(raw uintptr) { inner = do(int(raw)) })
	return errors.Join(err, inner)
}

// filled checks that r holds data and makes it present. The check looks at
// holes through the descriptor opened before the mark, so it raises no event.
func (o *Object) filled(r ondemand.Range) error {
	err := o.withFD(func(raw int) error {
		hole, err := sys.NextHole(raw, r.Off)
		if errors.Is(err, io.EOF) {
			hole, err = r.Off, nil // the file has become shorter
		}
		if err != nil {
			return err
		}
		if hole < r.End() {
			return fmt.Errorf("hole at %d: %w", hole, ondemand.ErrNotFilled)
		}
		return nil
	})
	if err == nil {
		o.setPresent(r)
	}
	return err
}

func (o *Object) setPresent(r ondemand.Range) {
	o.presence.Set(r)
	for _, present := range o.presence.Present(r) {
		o.record.set(present)
	}
}

// readHoles makes present what holds data: of each stretch of data the blocks
// that lie in it wholly. Where the filesystem's blocks are smaller than ours, a
// block may be half a hole; it is missing then.
func (o *Object) readHoles() error {
	return o.withFD(func(raw int) error {
		for off := int64(0); off < o.Size(); {
			data, err := sys.NextData(raw, off)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			hole, err := sys.NextHole(raw, data)
			if errors.Is(err, io.EOF) {
				return nil // made shorter since
			}
			if err != nil {
				return err
			}
			if end := min(hole, o.Size()); end > data {
				o.setPresent(ondemand.Range{Off: data, Len: end - data})
			}
			off = hole
		}
		return nil
	})
}
