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
	"github.com/lacunafs/lacuna/internal/erofs"
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
	dir := filepath.Join(i.root.Dir(), filesDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	name := filepath.Join(dir, string(object.ID())+imageSuffix)
	if _, err := os.Stat(name); err == nil {
		return name, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	var b strings.Builder
	if err := erofs.Write(&b, imageOfFile(object, where.modified())); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	if err := writeDurably(name, []byte(b.String())); err != nil {
		return "", fmt.Errorf("make a filesystem image: %w", err)
	}
	return name, nil
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
	return time.Now()
}
