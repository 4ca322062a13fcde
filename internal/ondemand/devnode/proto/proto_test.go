package proto

import (
	"bytes"
	"errors"
	"strings"
	"syscall"
	"testing"
)

func TestRecordLayout(t *testing.T) {
	b, err := Record{ID: 0x0102, Off: 4096, Len: 8192, Path: "blob"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 280 || string(b[24:28]) != "blob" || strings.Trim(string(b[28:]), "\x00") != "" {
		t.Fatalf("record %q", b)
	}
	if r, err := ParseRecord(b); err != nil || r.ID != 0x0102 || r.Off != 4096 || r.Len != 8192 || r.Path != "blob" {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestRecordRefusesWhatIsNone(t *testing.T) {
	for _, r := range []Record{
		{Len: 0, Path: "a"},
		{Len: 1, Path: ""},
		{Len: 1, Path: ".."},
		{Len: 1, Path: "a/b"},
		{Len: 1, Path: "a\x00b"},
		{Len: 1, Path: strings.Repeat("x", 255)},
		{Off: 1 << 63, Len: 1, Path: "a"},
		{Off: 1, Len: 1<<63 - 1, Path: "a"},
	} {
		if _, err := r.Encode(); !errors.Is(err, ErrRecord) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	good, err := Record{Len: 1, Path: strings.Repeat("x", 254)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"short":         func(b []byte) []byte { return b[:279] },
		"long":          func(b []byte) []byte { return append(b, 0) },
		"pad":           func(b []byte) []byte { b[279] = 1; return b },
		"path no NUL":   func(b []byte) []byte { b[278] = 'x'; return b },
		"behind path":   func(b []byte) []byte { b[30] = 0; return b },
		"path with a /": func(b []byte) []byte { b[30] = '/'; return b },
		"no path":       func(b []byte) []byte { clear(b[24:]); return b },
	} {
		if _, err := ParseRecord(spoil(bytes.Clone(good))); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommands(t *testing.T) {
	for text, want := range map[string]Command{
		"dir /a b":                {Verb: Dir, Arg: "/a b"},
		"tag x\n":                 {Verb: Tag, Arg: "x"},
		"bind":                    {Verb: Bind},
		"bind\n\x00":              {Verb: Bind},
		"bind\x00":                {Verb: Bind},
		"sync\n":                  {Verb: Sync},
		"done 0":                  {Verb: Done},
		"done 19":                 {Verb: Done, ID: 19},
		"done 0x1F\n":             {Verb: Done, ID: 31},
		"done 0X1f":               {Verb: Done, ID: 31},
		"done 017":                {Verb: Done, ID: 15},
		"done 5 28":               {Verb: Done, ID: 5, Errno: syscall.ENOSPC},
		"done 5 0x1c":             {Verb: Done, ID: 5, Errno: syscall.ENOSPC},
		"done 5 ENOSPC":           {Verb: Done, ID: 5, Errno: syscall.ENOSPC},
		"done 5 ENOENT":           {Verb: Done, ID: 5, Errno: syscall.ENOENT},
		"done 5 0":                {Verb: Done, ID: 5},
		"fd 7":                    {Verb: File, ID: 7},
		"done 0xffffffffffffffff": {Verb: Done, ID: 1<<64 - 1},
	} {
		if got, err := ParseCommand([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestCommandsRefused(t *testing.T) {
	for text, want := range map[string]syscall.Errno{
		"":                          syscall.EINVAL,
		"\n":                        syscall.EINVAL,
		"\x00":                      syscall.EINVAL,
		"nonsense":                  syscall.EINVAL,
		"DONE 1":                    syscall.EINVAL,
		" done 1":                   syscall.EINVAL,
		"done":                      syscall.EINVAL,
		"done ":                     syscall.EINVAL,
		"done x":                    syscall.EINVAL,
		"done 1x":                   syscall.EINVAL,
		"done 09":                   syscall.EINVAL,
		"done 0x":                   syscall.EINVAL,
		"done -1":                   syscall.EINVAL,
		"done +1":                   syscall.EINVAL,
		"done 1_0":                  syscall.EINVAL,
		"done 0b1":                  syscall.EINVAL,
		"done  1":                   syscall.EINVAL,
		"done 1 ":                   syscall.EINVAL,
		"done 1 EWHAT":              syscall.EINVAL,
		"done 1 -5":                 syscall.EINVAL,
		"done 1 4096":               syscall.EINVAL,
		"done 1 5 5":                syscall.EINVAL,
		"done 18446744073709551616": syscall.EINVAL,
		"done 1\ndone 2":            syscall.EINVAL,
		"done 1\x00\n":              syscall.EINVAL,
		"fd":                        syscall.EINVAL,
		"fd 1 5":                    syscall.EINVAL,
		"dir":                       syscall.EINVAL,
		"dir ":                      syscall.EINVAL,
		"tag":                       syscall.EINVAL,
		"bind ondemand":             syscall.EINVAL,
		"brun 5%":                   syscall.EOPNOTSUPP,
		"bcull 5%":                  syscall.EOPNOTSUPP,
		"bstop 5%":                  syscall.EOPNOTSUPP,
		"cull x":                    syscall.EOPNOTSUPP,
		"debug 1":                   syscall.EOPNOTSUPP,
		"frun 5%":                   syscall.EOPNOTSUPP,
		"fcull 5%":                  syscall.EOPNOTSUPP,
		"fstop 5%":                  syscall.EOPNOTSUPP,
		"inuse x":                   syscall.EOPNOTSUPP,
		"secctx x":                  syscall.EOPNOTSUPP,
		"tag " + strings.Repeat("x", MaxCommand-3): syscall.EOPNOTSUPP,
	} {
		_, err := ParseCommand([]byte(text))
		var refused *RefusedError
		if !errors.As(err, &refused) || !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", text, err, ErrnoName(want))
		}
	}
	if _, err := ParseCommand([]byte("tag " + strings.Repeat("x", MaxCommand-4))); err != nil {
		t.Error("longest command:", err)
	}
}

func TestAnswers(t *testing.T) {
	id := uint64(18446744073709551615)
	for text, a := range map[string]Answer{
		"ok sync":                                  {Synced: true},
		"fd 18446744073709551615":                  {File: &id},
		"error 22 EINVAL done 17: unknown id":      {Refused: refuse("done 17", syscall.EINVAL, "unknown id")},
		"error 16 EBUSY open: process 5 is: there": {Refused: refuse("open", syscall.EBUSY, "process 5 is: there")},
		"error 4000 4000 dir: what":                {Refused: refuse("dir", 4000, "what")},
	} {
		if got := string(a.Encode()); got != text {
			t.Errorf("%q, want %q", got, text)
		}
		got, err := ParseAnswer([]byte(text))
		if err != nil || string(got.Encode()) != text {
			t.Errorf("%q parses as %+v, %v", text, got, err)
		}
	}
	long := refuse("dir", syscall.EINVAL, "line\nbreak \x00\xff "+strings.Repeat("x", 5000)).Encode()
	if len(long) >= RecordSize || bytes.ContainsAny(long, "\n\x00\xff") {
		t.Errorf("answer %q", long)
	}
	for _, text := range []string{"", "ok", "fd", "fd x", "error", "error x EIO a: b", "error 5 EIO a", "error 5000 X a: b"} {
		if a, err := ParseAnswer([]byte(text)); !errors.Is(err, ErrAnswer) {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"dir /a", "tag t\n", "bind\x00", "done 0x10", "done 017 EIO", "fd 1", "sync", "cull x", "done 1\n2"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		c, err := ParseCommand(msg)
		if err != nil {
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Errno == 0 {
				t.Fatalf("%q: %v is no refusal", msg, err)
			}
			b := refused.Encode()
			if a, err := ParseAnswer(b); len(b) >= RecordSize || err != nil || a.Refused.Errno != refused.Errno {
				t.Fatalf("%q: answer %q, %v", msg, b, err)
			}
			return
		}
		// What is accepted is accepted again in its plainest form.
		plain := c.Name()
		if c.Arg != "" {
			plain += " " + c.Arg
		}
		if c.Errno != 0 {
			plain += " " + ErrnoName(c.Errno)
		}
		if again, err := ParseCommand([]byte(plain)); len(plain) <= MaxCommand && (err != nil || again != c) {
			t.Fatalf("%q is %+v, but %q is %+v, %v", msg, c, plain, again, err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	b, err := Record{ID: 1, Off: 4096, Len: 4096, Path: "blob"}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(make([]byte, RecordSize))
	f.Fuzz(func(t *testing.T, msg []byte) {
		r, err := ParseRecord(msg)
		if err != nil {
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.Equal(again, msg) {
			t.Fatalf("%x was written back as %x, %v", msg, again, err)
		}
	})
}
