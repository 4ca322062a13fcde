package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Birth is when the file behind raw was made, in nanoseconds since 1970, and 0
// where the filesystem does not record it. Unlike the inode number it is not
// given again to a file that takes a removed one's place (statx(2), stx_btime).
func Birth(raw int) (int64, error) {
	var st unix.Statx_t
	if err := unix.Statx(raw, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st); err != nil {
		return 0, fmt.Errorf("stat descriptor %d: %w", raw, err)
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return 0, nil
	}
	return st.Btime.Sec*1e9 + int64(st.Btime.Nsec), nil
}

// Uncache asks the kernel to forget its clean copies of the data of the file
// behind raw, so that later reads ask the disk (posix_fadvise(2),
// POSIX_FADV_DONTNEED).
func Uncache(raw int) error {
	if err := unix.Fadvise(raw, 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop cached data: %w", err)
	}
	return nil
}

// DirectAlignment is what the places and the memory of direct reads of the file at
// path must be multiples of; 0 where it cannot be read so, or where that is not
// known (statx(2), STATX_DIOALIGN, Linux 6.1).
func DirectAlignment(path string) (int64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_mem_align == 0 {
		return 0, nil
	}
	return int64(max(st.Dio_mem_align, st.Dio_offset_align)), nil
}
