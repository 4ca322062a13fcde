package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// filesDir holds the filesystem images of attached files, each called after its
// object and imageSuffix; fileName is the name of the file in it.
const (
	filesDir    = "files"
	imageSuffix = ".erofs"
	fileName    = "data"
)

// fileImage is the path of the filesystem image that shows the object as a file;
// it is made where it is not there.
func (i *Instance) fileImage(object *cache.Object, where origin) (string, error) {
	name := i.fileImageName(object.ID())
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	if _, err := os.Stat(name); err == nil {
		return name, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	var b strings.Builder
	if err := erofs.Write(&b, imageOfFile(object, where.modified())); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	if err := durable.ReplaceBytes(name, []byte(b.String())); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	return name, nil
}

func (i *Instance) fileImageName(id ondemand.ObjectID) string {
	return filepath.Join(i.root.Dir(), filesDir, string(id)+imageSuffix)
}

// removeObject removes an object that is of no use any more, with its image.
func (i *Instance) removeObject(id ondemand.ObjectID) error {
	err := os.Remove(i.fileImageName(id))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, i.root.Remove(id))
}

// largestFile is what an image can show: 32 bits count the blocks of both the
// image, which has one, and its device.
const largestFile = (1<<32 - 2) * erofs.BlockSize

// refuseTooLarge refuses what no image can show.
func refuseTooLarge(where origin) error {
	if where.Identity.Size > largestFile {
		return refuse(control.ExitError, "", "attach %s: it has %d bytes, and 16 TiB are possible", where.redacted(), where.Identity.Size)
	}
	return nil
}

func imageOfFile(object *cache.Object, modified time.Time) *erofs.Image {
	file := &erofs.Inode{
		Mode: syscall.S_IFREG | 0o444, Size: object.Size(),
		Sec: modified.Unix(), Nsec: uint32(modified.Nanosecond()),
	}
	img := &erofs.Image{Root: &erofs.Inode{
		Mode: syscall.S_IFDIR | 0o555, Sec: file.Sec, Nsec: file.Nsec,
		Children: []erofs.Dirent{{Name: fileName, Inode: file}},
	}}
	if object.Size() > 0 {
		blocks := (uint64(object.Size()) + erofs.BlockSize - 1) / erofs.BlockSize
		img.Devices = []erofs.Device{{Tag: string(object.ID()), Blocks: blocks}}
	}
	return img
}

// modified is when the source says that its bytes were made, else now.
func (o origin) modified() time.Time {
	if date, ok := strings.CutPrefix(o.Identity.Validator, "last-modified: "); ok {
		if t, err := http.ParseTime(date); err == nil {
			return t
		}
	}
	var ns int64
	if _, err := fmt.Sscanf(o.Identity.Validator, "mtime %d ", &ns); err == nil && o.Kind == originFile {
		return time.Unix(0, ns)
	}
	return time.Now()
}
