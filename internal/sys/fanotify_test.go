package sys

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// eventBytes writes an event as the kernel does.
func eventBytes(ev FanotifyEvent) []byte {
	ne := binary.NativeEndian
	b := make([]byte, metadataLen, FanotifyEventSize)
	b[4] = unix.FANOTIFY_METADATA_VERSION
	ne.PutUint16(b[6:], metadataLen)
	ne.PutUint64(b[8:], ev.Mask)
	ne.PutUint32(b[16:], uint32(int32(ev.FD)))
	ne.PutUint32(b[20:], uint32(int32(ev.PID)))
	if ev.HasRange {
		b = b[:FanotifyEventSize]
		b[metadataLen] = infoTypeRange
		ne.PutUint16(b[metadataLen+2:], rangeInfoLen)
		ne.PutUint64(b[metadataLen+8:], ev.Offset)
		ne.PutUint64(b[metadataLen+16:], ev.Count)
	}
	ne.PutUint32(b, uint32(len(b)))
	return b
}

func TestMetadataLayoutIsTheHeaders(t *testing.T) {
	var m unix.FanotifyEventMetadata
	for name, c := range map[string][2]uintptr{
		"size":         {unsafe.Sizeof(m), metadataLen},
		"vers":         {unsafe.Offsetof(m.Vers), 4},
		"metadata_len": {unsafe.Offsetof(m.Metadata_len), 6},
		"mask":         {unsafe.Offsetof(m.Mask), 8},
		"fd":           {unsafe.Offsetof(m.Fd), 16},
		"pid":          {unsafe.Offsetof(m.Pid), 20},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d, want %d", name, c[1], c[0])
		}
	}
}

func TestParseFanotifyEventReadsWhatWasWritten(t *testing.T) {
	evs := []FanotifyEvent{
		{Mask: FanPreAccess, FD: 7, PID: 99, HasRange: true, Offset: 1 << 63, Count: 1<<64 - 1},
		{Mask: FanPreAccess, FD: 8, PID: 1},
		{Mask: FanQOverflow, FD: -1},
		{Mask: FanPreAccess, FD: -int(syscall.EMFILE), PID: 5, HasRange: true},
	}
	var buf []byte
	for _, ev := range evs {
		buf = append(buf, eventBytes(ev)...)
	}
	for i, want := range evs {
		got, rest, err := ParseFanotifyEvent(buf)
		if err != nil || got != want {
			t.Fatalf("event %d: %+v, %v, want %+v", i, got, err, want)
		}
		buf = rest
	}
	if buf == nil || len(buf) != 0 {
		t.Errorf("%d bytes left, nil: %v", len(buf), buf == nil)
	}
}

func TestMalformedEvents(t *testing.T) {
	ne := binary.NativeEndian
	whole := FanotifyEvent{Mask: FanPreAccess, FD: 7, PID: 99, HasRange: true, Offset: 4096, Count: 8192}
	for _, c := range []struct {
		name  string
		spoil func(b []byte) []byte
		fd    int
		lost  bool // what follows cannot be found
	}{
		{"empty", func([]byte) []byte { return nil }, -1, true},
		{"cut in the metadata", func(b []byte) []byte { return b[:23] }, -1, true},
		{"version", func(b []byte) []byte { b[4]++; return b }, -1, true},
		{"length 0", func(b []byte) []byte { ne.PutUint32(b, 0); return b }, 7, true},
		{"length of less than metadata", func(b []byte) []byte { ne.PutUint32(b, 23); return b }, 7, true},
		{"length beyond the buffer", func(b []byte) []byte { ne.PutUint32(b, 49); return b[:48] }, 7, true},
		{"length without limit", func(b []byte) []byte { ne.PutUint32(b, 1<<32-1); return b }, 7, true},
		{"metadata of less than it is", func(b []byte) []byte { ne.PutUint16(b[6:], 23); return b }, 7, false},
		{"metadata of more than the event", func(b []byte) []byte { ne.PutUint16(b[6:], 49); return b }, 7, false},
		{"record of 0", func(b []byte) []byte { ne.PutUint16(b[26:], 0); return b }, 7, false},
		{"record beyond the event", func(b []byte) []byte { ne.PutUint16(b[26:], 25); return b }, 7, false},
		{"short range record", func(b []byte) []byte { ne.PutUint16(b[26:], 20); return b }, 7, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.spoil(append(eventBytes(whole), eventBytes(whole)...))
			ev, rest, err := ParseFanotifyEvent(b)
			if !errors.Is(err, ErrMalformedEvent) || ev.FD != c.fd || (rest == nil) != c.lost {
				t.Fatalf("%+v, %d bytes left, nil: %v, %v", ev, len(rest), rest == nil, err)
			}
			if !c.lost {
				if next, _, err := ParseFanotifyEvent(rest); err != nil || next != whole {
					t.Errorf("next: %+v, %v", next, err)
				}
			}
		})
	}
}

func TestUnknownRecordsArePassedOver(t *testing.T) {
	want := FanotifyEvent{Mask: FanPreAccess, FD: 7, HasRange: true, Offset: 1, Count: 2}
	b := eventBytes(want)
	unknown := []byte{99, 0, 8, 0, 1, 2, 3, 4}
	b = append(append(append([]byte(nil), b[:metadataLen]...), unknown...), append(b[metadataLen:], unknown...)...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	if got, rest, err := ParseFanotifyEvent(b); err != nil || got != want || len(rest) != 0 {
		t.Errorf("%+v, %d left, %v", got, len(rest), err)
	}
}

// readerEnv makes the test binary read one byte of the file that it names.
const readerEnv = "LACUNA_TEST_READ"

func beReader() {
	path := os.Getenv(readerEnv)
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if err == nil {
		_, err = f.Read(make([]byte, 1))
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	os.Exit(int(errno)) // each errno of a denial fits into a status
}

// realEvent marks a sparse file, lets another process read it, and returns the
// bytes of the event. answer lets the reader go on and returns its errno.
func realEvent(t testing.TB) (b []byte, pid int, answer func(syscall.Errno) syscall.Errno) {
	t.Helper()
	group, err := FanotifyInit()
	ok(t, err)
	t.Cleanup(func() { ok(t, group.Close()) })
	f := tempFile(t)
	ok(t, f.Truncate(1<<20))
	file, err := OpenPath(f.Name())
	ok(t, err)
	ok(t, FanotifyMark(group, file))
	t.Cleanup(func() { ok(t, errors.Join(FanotifyUnmark(group, file), file.Close())) })
	exe, err := os.Executable()
	ok(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), readerEnv+"="+f.Name())
	ok(t, cmd.Start())
	readable, err := WaitReadable(group, 60000)
	if err != nil || !readable {
		t.Fatalf("no event: %v", err)
	}
	b = make([]byte, 4096)
	n, err := Read(group, b)
	ok(t, err)
	return b[:n], cmd.Process.Pid, func(errno syscall.Errno) syscall.Errno {
		ev, _, err := ParseFanotifyEvent(b[:n])
		ok(t, err)
		ok(t, FanotifyRespond(group, ev.FD, errno))
		if err := FanotifyRespond(group, ev.FD, errno); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("second answer: %v", err)
		}
		ok(t, NewFD(ev.FD).Close())
		err = cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return syscall.Errno(cmd.ProcessState.ExitCode())
	}
}

func TestRealEventsAndAnswers(t *testing.T) {
	for _, errno := range []syscall.Errno{0, syscall.EIO, syscall.EPERM, syscall.EBUSY, syscall.ETXTBSY, syscall.EAGAIN, syscall.ENOSPC, syscall.EDQUOT} {
		b, pid, answer := realEvent(t)
		ev, rest, err := ParseFanotifyEvent(b)
		if err != nil || len(rest) != 0 || len(b) != FanotifyEventSize {
			t.Errorf("%d bytes, %d left, %v", len(b), len(rest), err)
		}
		if ev.Mask != FanPreAccess || ev.PID != pid || !ev.HasRange || ev.Offset != 0 || ev.Count != 4096 {
			t.Errorf("%+v, want a page read by %d", ev, pid)
		}
		if got := eventBytes(ev); string(got) != string(b) {
			t.Errorf("written back: %v, was %v", got, b)
		}
		if got := answer(errno); got != errno {
			t.Errorf("reader got %v, want %v", got, errno)
		}
	}
}

func TestMarksAreCounted(t *testing.T) {
	group, err := FanotifyInit()
	ok(t, err)
	defer func() { ok(t, group.Close()) }()
	var files []*FD
	count := func() {
		t.Helper()
		if n, err := FanotifyMarks(group); err != nil || n != len(files) {
			t.Errorf("%d marks, %v, want %d", n, err, len(files))
		}
	}
	for count(); len(files) < 300; count() {
		file, err := OpenPath(tempFile(t).Name())
		ok(t, err)
		ok(t, FanotifyMark(group, file))
		ok(t, FanotifyMark(group, file)) // again: still one
		files = append(files, file)
	}
	for ; len(files) > 0; count() {
		file := files[0]
		files = files[1:]
		ok(t, errors.Join(FanotifyUnmark(group, file), file.Close()))
		if err := FanotifyUnmark(group, file); err == nil {
			t.Error("the mark was removed twice")
		}
	}
}

func TestAnswersThatTheKernelRefuses(t *testing.T) {
	b, _, answer := realEvent(t)
	ev, _, err := ParseFanotifyEvent(b)
	ok(t, err)
	group, err := FanotifyInit()
	ok(t, err)
	if err := FanotifyRespond(group, ev.FD, 0); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("answer to another group: %v", err)
	}
	if err := FanotifyRespond(group, -1, 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("answer to no event: %v", err)
	}
	if err := FanotifyRespond(group, ev.FD, syscall.ENOENT); err == nil {
		t.Error("a denial with ENOENT was taken")
	}
	if _, err := Read(group, make([]byte, 100)); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("read with nothing to read: %v", err)
	}
	ok(t, group.Close())
	if got := answer(0); got != 0 {
		t.Errorf("reader got %v", got)
	}
}

func FuzzParseFanotifyEvent(f *testing.F) {
	f.Add(eventBytes(FanotifyEvent{Mask: FanPreAccess, FD: 7, PID: 99, HasRange: true, Offset: 4096, Count: 8192}))
	f.Add(eventBytes(FanotifyEvent{Mask: FanQOverflow, FD: -1}))
	f.Add([]byte{})
	if os.Geteuid() == 0 {
		b, _, answer := realEvent(f)
		answer(0)
		f.Add(append(append([]byte(nil), b...), b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			ev, rest, err := ParseFanotifyEvent(b)
			switch {
			case len(rest) >= len(b):
				t.Fatalf("%d bytes left of %d", len(rest), len(b))
			case err != nil && !errors.Is(err, ErrMalformedEvent):
				t.Fatal(err)
			case err == nil && rest == nil:
				t.Fatal("a good event, and the next cannot be found")
			case len(b) >= metadataLen && b[4] == unix.FANOTIFY_METADATA_VERSION && ev.FD != int(int32(binary.NativeEndian.Uint32(b[16:]))):
				t.Fatalf("descriptor %d", ev.FD)
			}
			if err == nil {
				// What parses says the same when it is written again.
				if again, _, err := ParseFanotifyEvent(eventBytes(ev)); err != nil || again != ev {
					t.Fatalf("%+v became %+v, %v", ev, again, err)
				}
			}
			b = rest
		}
	})
}
