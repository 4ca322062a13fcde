package fileset

import (
	"path"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/erofs"
	"github.com/lacunafs/lacuna/internal/manifest"
)

// imageOf is the filesystem image of the tree.
func imageOf(list []manifest.Entry, devices []Device, places []place, now time.Time) *erofs.Image {
	dirs := make(map[string]*erofs.Inode)
	var dir func(name string) *erofs.Inode
	dir = func(name string) *erofs.Inode {
		if d := dirs[name]; d != nil {
			return d
		}
		d := &erofs.Inode{Mode: syscall.S_IFDIR | 0o555, Sec: now.Unix(), Nsec: uint32(now.Nanosecond())}
		dirs[name] = d
		if name != "." {
			up := dir(path.Dir(name))
			up.Children = append(up.Children, erofs.Dirent{Name: path.Base(name), Inode: d})
		}
		return d
	}
	img := &erofs.Image{Root: dir(".")}
	for n, e := range list {
		at := e.Modified
		if at.IsZero() {
			at = now
		}
		file := &erofs.Inode{
			Mode: syscall.S_IFREG | e.Mode, Size: e.Size, Device: places[n].device, Offset: places[n].off,
			Sec: at.Unix(), Nsec: uint32(at.Nanosecond()),
		}
		up := dir(path.Dir(e.Path))
		up.Children = append(up.Children, erofs.Dirent{Name: path.Base(e.Path), Inode: file})
	}
	for _, d := range devices {
		img.Devices = append(img.Devices, erofs.Device{Tag: string(d.Object), Blocks: uint64(d.Size / erofs.BlockSize)})
	}
	return img
}
