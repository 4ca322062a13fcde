package mount

import "strings"

// An overlay holds clones of the mounts of its lower directories, made when it was
// mounted (fs/overlayfs/super.c, ovl_get_layers, clone_private_mount). They are in no
// mount namespace: no list of mounts has them, umount(2) of the originals does not
// find them busy, and the files that are open in the overlay are the overlay's. Only
// the overlay's options tell, by the paths that it was given.

// lower are the lower directories of an overlay, as it was told them.
func (m Mount) lower() (dirs []string) {
	if m.Type != "overlay" {
		return nil
	}
	// Commas in a value are escaped (include/linux/seq_file.h, seq_show_option).
	for option := range strings.SplitSeq(m.options, ",") {
		switch key, value, _ := strings.Cut(option, "="); key {
		case "lowerdir":
			dirs = append(dirs, splitLower(unescape(value))...)
		case "lowerdir+", "datadir+":
			dirs = append(dirs, unescape(value))
		}
	}
	return dirs
}

// splitLower separates at colons; a backslash keeps one from that
// (Documentation/filesystems/overlayfs.rst, Multiple lower layers).
func splitLower(list string) (dirs []string) {
	var dir strings.Builder
	end := func() {
		if dir.Len() > 0 {
			dirs = append(dirs, dir.String())
		}
		dir.Reset()
	}
	for n := 0; n < len(list); n++ {
		switch {
		case list[n] == ':':
			end()
			continue
		case list[n] == '\\' && n+1 < len(list):
			n++
		}
		dir.WriteByte(list[n])
	}
	end()
	return dirs
}

// Overlays are the mount points of the overlays of which a lower directory is point
// or below it. One that was made before what is mounted there now is left out: it has
// what was there then. One that was told a relative path is not found.
func Overlays(mounts []Mount, point string) (points []string) {
	first := 0
	for n, m := range mounts {
		if m.Point == point && m.Type != "overlay" {
			first = n
		}
	}
	for _, m := range mounts[first:] {
		if m.isOver(point) {
			points = append(points, m.Point)
		}
	}
	return points
}

// isOver tells whether the mount is an overlay with a lower directory at or below point.
func (m Mount) isOver(point string) bool {
	for _, dir := range m.lower() {
		if dir == point || strings.HasPrefix(dir, strings.TrimSuffix(point, "/")+"/") {
			return true
		}
	}
	return false
}
