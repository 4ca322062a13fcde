package sys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// From include/uapi/linux/fanotify.h; x/sys/unix has the flags, but neither
// the information header, nor the range record, nor a denial with an errno.
const (
	FanPreAccess  = 0x00100000 // FAN_PRE_ACCESS
	FanQOverflow  = unix.FAN_Q_OVERFLOW
	metadataLen   = 24 // struct fanotify_event_metadata
	infoHeaderLen = 4  // struct fanotify_event_info_header
	rangeInfoLen  = 24 // struct fanotify_event_info_range
	infoTypeRange = 6  // FAN_EVENT_INFO_TYPE_RANGE
)

// FanotifyEventSize is the size in bytes of a pre-content event with its range
// record. A buffer of n times this takes at most n events in one read.
const FanotifyEventSize = metadataLen + rangeInfoLen

// FanotifyInit makes a group for pre-content events: queue and marks without
// limit (a full queue lets readers through to the holes), non-blocking, and
// event descriptors that are read-only, so that a reader on a read-only mount
// raises an event that can be opened. It needs CAP_SYS_ADMIN.
func FanotifyInit() (*FD, error) {
	const flags = unix.FAN_CLASS_PRE_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
		unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS | unix.FAN_REPORT_FD_ERROR
	raw, err := unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a fanotify group for pre-content events: %w", err)
	}
	return NewFD(raw), nil
}

// FanotifyMark asks for pre-content events of the inode behind file, which may
// be a descriptor opened with O_PATH.
func FanotifyMark(group, file *FD) error {
	return fanotifyMark(group, unix.FAN_MARK_ADD, file.Int(), FanPreAccess)
}

// FanotifyUnmark takes back FanotifyMark.
func FanotifyUnmark(group, file *FD) error {
	return fanotifyMark(group, unix.FAN_MARK_REMOVE, file.Int(), FanPreAccess)
}

func fanotifyMark(group *FD, op uint, file int, mask uint64) error {
	// The path names the open file itself, whatever happened to its name.
	err := unix.FanotifyMark(group.Int(), op, mask, unix.AT_FDCWD, ProcPath(file))
	if err != nil {
		return fmt.Errorf("change the pre-content mark: %w", err)
	}
	return nil
}

// FanotifyMarks is the number of inodes that are marked in group, by whichever
// process (proc_pid_fdinfo(5), "fanotify ino:").
func FanotifyMarks(group *FD) (int, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", group.Int()))
	if err != nil {
		return 0, fmt.Errorf("count the marks: %w", err)
	}
	n := 0
	for line := range bytes.Lines(info) {
		if bytes.HasPrefix(line, []byte("fanotify ino:")) {
			n++
		}
	}
	return n, nil
}

// ProcPath is a path that leads to the open file behind the descriptor raw.
func ProcPath(raw int) string { return fmt.Sprintf("/proc/self/fd/%d", raw) }

// FanotifyEvent is one event as read from a group.
type FanotifyEvent struct {
	// Mask holds FanPreAccess, or FanQOverflow, or both classes' other bits.
	Mask uint64
	// FD is the number of the open descriptor of the file that is read, to be
	// answered and then closed by the reader of the event. Negative: none;
	// with FAN_REPORT_FD_ERROR it is -errno, and the kernel has denied the
	// access already (fs/notify/fanotify/fanotify_user.c).
	FD int
	// PID is the process that reads, in this process's pid namespace.
	PID int
	// HasRange tells whether the event had a range record. Offset and Count
	// are bytes as the kernel sent them: possibly page-widened, possibly
	// past the end of the file.
	HasRange      bool
	Offset, Count uint64
}

// ErrMalformedEvent tells of an event that does not have the layout of
// struct fanotify_event_metadata, version 3.
var ErrMalformedEvent = errors.New("malformed fanotify event")

// ParseFanotifyEvent takes the first event off buf and returns it with what
// follows it. With ErrMalformedEvent the event is still returned as far as it
// could be read, with FD -1 where not even the descriptor could be; rest then
// starts behind it, and is nil where its length cannot be trusted, so that events
// behind it are lost. Otherwise rest is never nil. An empty buf is an error.
func ParseFanotifyEvent(buf []byte) (ev FanotifyEvent, rest []byte, err error) {
	ev.FD = -1
	if len(buf) < metadataLen {
		return ev, nil, fmt.Errorf("%w: %d bytes left", ErrMalformedEvent, len(buf))
	}
	ne := binary.NativeEndian
	length, version, metaLen := ne.Uint32(buf), buf[4], ne.Uint16(buf[6:])
	ev.Mask = ne.Uint64(buf[8:])
	ev.FD = int(int32(ne.Uint32(buf[16:])))
	ev.PID = int(int32(ne.Uint32(buf[20:])))
	if version != unix.FANOTIFY_METADATA_VERSION {
		// The layout is unknown, and with it where the descriptor lies.
		ev.FD = -1
		return ev, nil, fmt.Errorf("%w: version %d", ErrMalformedEvent, version)
	}
	if length < metadataLen || int64(length) > int64(len(buf)) {
		return ev, nil, fmt.Errorf("%w: length %d of %d", ErrMalformedEvent, length, len(buf))
	}
	rest = buf[length:]
	if metaLen < metadataLen || uint32(metaLen) > length {
		return ev, rest, fmt.Errorf("%w: metadata length %d of %d", ErrMalformedEvent, metaLen, length)
	}
	return ev, rest, ev.parseInfo(buf[metaLen:length])
}

// parseInfo reads the information records behind an event's metadata.
// Records of other types are passed over, as the header asks of readers.
func (ev *FanotifyEvent) parseInfo(info []byte) error {
	for len(info) > 0 {
		if len(info) < infoHeaderLen {
			return fmt.Errorf("%w: %d bytes of information", ErrMalformedEvent, len(info))
		}
		n := int(binary.NativeEndian.Uint16(info[2:]))
		if n < infoHeaderLen || n > len(info) {
			return fmt.Errorf("%w: information record of %d bytes in %d", ErrMalformedEvent, n, len(info))
		}
		if info[0] == infoTypeRange {
			if n < rangeInfoLen || ev.HasRange {
				return fmt.Errorf("%w: range record of %d bytes", ErrMalformedEvent, n)
			}
			ev.HasRange = true
			ev.Offset = binary.NativeEndian.Uint64(info[8:])
			ev.Count = binary.NativeEndian.Uint64(info[16:])
		}
		info = info[n:]
	}
	return nil
}

// FanotifyRespond answers the event whose descriptor has the number event:
// errno 0 allows the access, any of EIO, EPERM, EBUSY, ETXTBSY, EAGAIN, ENOSPC
// and EDQUOT denies it with that errno. Other numbers are an error, and the
// reader stays asleep. ENOENT says that no such event is open.
func FanotifyRespond(group *FD, event int, errno syscall.Errno) error {
	response := uint32(unix.FAN_ALLOW)
	if errno != 0 {
		response = unix.FAN_DENY | uint32(errno)<<unix.FAN_ERRNO_SHIFT
	}
	var buf [8]byte // struct fanotify_response
	binary.NativeEndian.PutUint32(buf[:], uint32(int32(event)))
	binary.NativeEndian.PutUint32(buf[4:], response)
	for {
		_, err := unix.Write(group.Int(), buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("answer fanotify event %d with errno %d: %w", event, int(errno), err)
		}
		return nil
	}
}

// Read reads once into p. It returns 0 and EAGAIN, wrapped, when a
// non-blocking descriptor has nothing.
func Read(fd *FD, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd.Int(), p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read descriptor %d: %w", fd.Int(), err)
		}
		return n, nil
	}
}
