package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB",
		5 << 30: "5.0 GiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8192.0 PiB",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 340 * time.Microsecond: "340 µs", 1048576: "1.0 ms", 9999 * time.Microsecond: "10.0 ms",
		20971520: "20 ms", 1500 * time.Millisecond: "1.5 s", 90 * time.Second: "1m30s",
	} {
		if got := durationText(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func TestPercentTextIsWholeOnlyWhenAllIs(t *testing.T) {
	for _, tt := range []struct {
		part, whole int64
		want        string
	}{{0, 0, "100%"}, {0, 10, "0.0%"}, {1, 3, "33.3%"}, {99999, 100000, "99.9%"}, {10, 10, "100%"}} {
		if got := percentText(tt.part, tt.whole); got != tt.want {
			t.Errorf("%d of %d: %s, want %s", tt.part, tt.whole, got, tt.want)
		}
	}
}

func TestCount(t *testing.T) {
	if got := count(1, "file") + ", " + count(uint64(2), "request") + ", " + count(int64(0), "file"); got != "1 file, 2 requests, 0 files" {
		t.Error(got)
	}
}

func TestStatusText(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got := statusText(control.Status{
		Version: "v1", Root: "/c", KeeperPID: 7, WorkerPID: 8, Started: start,
		Requests: control.Requests{Pending: 1, Filled: 2, Failed: 3, Coalesced: 4, P50: 5 * time.Millisecond, P99: time.Second},
		Attached: []control.Attached{
			{
				File: "/f", Object: strings.Repeat("ab", 32), Source: "http://h/x", Ranges: true, Size: 2048, Present: 1024,
				Verified: "pending", Hits: 1, Misses: 2, Requests: 1, Fetched: 1024, SourceP50: time.Millisecond, SourceP99: time.Millisecond,
			},
			{File: "/g", Object: strings.Repeat("cd", 32), Source: "/x", Verified: "unverifiable", Error: "read it: gone\nfor good"},
		},
		Bound:  []control.Bound{{Dir: "/d", Devnode: "/s", Files: 2, Size: 10, DaemonPID: 9, Pending: 1}},
		Broken: []control.Broken{{Path: "/h", Kind: "attach", Reason: "damaged\nbadly"}},
		Unguarded: []control.Unguarded{{
			From: start, To: start.Add(time.Minute), Files: []string{"/f", "/g"}, Users: []string{"process 1 (a)", "process 2 (b)"},
		}},
		Errors: []string{"one", "two\nlines"},
	}, start.Add(90*time.Second))
	want := `lacuna v1, daemon, up 1m30s (keeper 7, worker 8)
cache     /c
misses    1 waiting, 2 filled, 3 failed, 4 shared a fill
latency   of a miss: p50 5.0 ms, p99 1.0 s

/f
  source    http://h/x
  object    abababababab
  present   1.0 KiB of 2.0 KiB (50.0%)
  verified  not yet: the digest is checked once everything is here
  reads     1 present, 2 missed
  fetched   1.0 KiB in 1 request, first byte after p50 1.0 ms, p99 1.0 ms

/g
  source    /x
  object    cdcdcdcdcdcd
  present   0 B of 0 B (100%)
  verified  no digest is known
  reads     0 present, 0 missed
  note      the server does not serve ranges: downloaded once, in order
  error     read it: gone; for good

/d
  devnode   /s, daemon 9, 1 waiting
  present   0 B of 10 B (0.0%), in 2 files
  reads     0 present, 0 missed

/h
  BROKEN    what is missing is denied, ` + "`lacuna detach`" + ` takes it down
  reason    damaged; badly

UNGUARDED from 2026-01-02T03:04:05Z to 2026-01-02T03:05:05Z: readers may have seen zeros in
  /f
  /g
  still used by process 1 (a), process 2 (b)

last errors
  one
  two; lines
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestReportText(t *testing.T) {
	many := make([]ondemand.Range, maxRanges+2)
	for i := range many {
		many[i] = ondemand.Range{Off: int64(i) * 8192, Len: 4096}
	}
	bad := checkedObject{Report: cache.Report{ID: "0123456789abcdef", Size: 8192, Present: 4096, Mismatches: many}, Name: "/mnt/f"}
	bad.Recovered.Holes = many[:1]
	got := reportText(bad)
	want := `0123456789ab  CORRUPT  4.0 KiB of 8.0 KiB present  /mnt/f
  recorded as present, and holes: [0,+4096)
  other bytes than the source: [0,+4096) [8192,+4096) [16384,+4096) [24576,+4096) [32768,+4096) [40960,+4096) [49152,+4096) [57344,+4096) and 2 more
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
	if got := reportText(checkedObject{Report: cache.Report{ID: "01", Size: 2, Present: 1, Verified: true}}); got != "01  ok       1 B of 2 B present, bytes verified\n" {
		t.Errorf("got %q", got)
	}
	if got := reportText(checkedObject{Report: cache.Report{ID: "01", Size: 2, Present: 1, Compared: 1, Unverifiable: true}}); got != "01  unverified  1 B of 2 B present, cannot be verified: there is no digest of its bytes\n" {
		t.Errorf("got %q", got)
	}
}

func TestCorruptErrorCounts(t *testing.T) {
	for _, tt := range []struct {
		n, of    int
		repaired bool
		want     string
	}{
		{1, 3, false, "1 of 3 objects is corrupt"}, {2, 3, false, "2 of 3 objects are corrupt"},
		{1, 1, true, "1 of 1 objects was corrupt"}, {2, 2, true, "2 of 2 objects were corrupt"},
	} {
		if got := corruptError(tt.n, tt.of, &checkCmd{Repair: tt.repaired}).Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestWrap(t *testing.T) {
	got := strings.Join(wrap("one two  three a-word-that-is-too-long four", 9), "|")
	if want := "one two|three|a-word-that-is-too-long|four"; got != want {
		t.Errorf("got %s", got)
	}
	if got := wrap("", 5); len(got) != 1 || got[0] != "" {
		t.Errorf("got %q", got)
	}
}

func TestPlainLogIsForTheUserOfTheCommand(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newPlainLog(&out))
	log.Info("not told")
	log.Warn("the server does not serve ranges")
	log.With("file", "/f").Warn("file is in use", "by", "process 7")
	log.Error("answering reads", "err", errors.Join(errors.New("one"), errors.New("two")))
	want := "note: the server does not serve ranges\nnote: file is in use: /f, by process 7\nerror: answering reads: one; two\n"
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
}

func TestProgressInALogIsALineNowAndThen(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, lines: true, started: time.Now().Add(-2 * time.Second), first: -1}
	p.show("big.bin", 0, 2048)
	if out.Len() > 0 {
		t.Errorf("wrote %q in the first seconds", out.String())
	}
	p.started = p.started.Add(-silentElse)
	p.show("big.bin", 1024, 2048)
	p.show("big.bin", 1025, 2048) // at once again: left out
	p.show("big.bin", 2048, 2048)
	p.show("big.bin", 2048, 2048) // told before
	p.end()
	if got := out.String(); got != "big.bin: 50%, 1.0 KiB of 2.0 KiB\nbig.bin: 100%, 2.0 KiB of 2.0 KiB\n" {
		t.Errorf("wrote %q", got)
	}
}

func TestWaitingTellsWhatTakesSoLong(t *testing.T) {
	if got := waitingText("asking for x", "; slow", 0, false); got != "asking for x ..." {
		t.Error(got)
	}
	if got := waitingText("asking for x", "; slow", 25*time.Second, true); got != "asking for x ... 25s; slow" {
		t.Error(got)
	}
}

func TestProgressIsShownOnATerminalOnly(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.started = time.Now().Add(-time.Minute)
	p.show("x", 1, 2)
	p.end()
	if out.Len() > 0 {
		t.Errorf("wrote %q", out.String())
	}
}

func TestProgressLine(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, started: time.Now(), first: -1}
	p.show("big.bin", 0, 2048)
	if out.Len() > 0 {
		t.Errorf("wrote %q in the first second", out.String())
	}
	p.started = p.started.Add(-2 * time.Second)
	p.show("big.bin", 1024, 2048)
	p.show("big.bin", 1025, 2048) // at once again: left out
	p.end()
	got := out.String()
	if !strings.HasPrefix(got, "\rbig.bin [###############...............]  50% 1.0 KiB of 2.0 KiB, ") || !strings.HasSuffix(got, "/s\x1b[K\n") {
		t.Errorf("wrote %q", got)
	}
	if strings.Count(got, "big.bin") != 1 {
		t.Errorf("wrote %q", got)
	}
}

func TestWhatIsNoTerminalIsNone(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(f) || isTerminal(null) {
		t.Errorf("file %t, /dev/null %t", isTerminal(f), isTerminal(null))
	}
}

// Errors that end a command while it is running.
func TestFailWordsAndStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		want   string
		status int
	}{
		{"with a hint", &control.Error{Message: "m", Hint: "h", Exit: control.ExitInUse}, "lacuna: m\nhint: h\n", 6},
		{"without", errors.New("m"), "lacuna: m\n", 1},
		{"several", errors.Join(errors.New("a"), errors.New("b")), "lacuna: a; b\n", 1},
		{"told already", errSilent(3), "", 3},
		{"nobody reads", fmt.Errorf("write: %w", &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.EPIPE}), "", 1},
		{"full output", &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.ENOSPC}, "lacuna: write /dev/stdout: no space left on device\nhint: free space where the output goes\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			a := &app{stderr: &out}
			if status := a.fail(tt.err); status != tt.status || out.String() != tt.want {
				t.Errorf("status %d, %q", status, out.String())
			}
		})
	}
}

// What has no room, or no place, is told of with what to do about that very place.
func TestTargetExplains(t *testing.T) {
	to := target{layout: "/out"}
	temp := filepath.Join(os.TempDir(), "x")
	for _, tt := range []struct {
		path string
		err  error
		hint string
	}{
		{temp, syscall.ENOSPC, "TMPDIR=DIR"}, {temp, syscall.ENOENT, "TMPDIR=DIR"},
		{"/out/blobs/sha256/x", syscall.ENOSPC, "filesystem of /out"}, {"/out/blobs/sha256/x", syscall.EDQUOT, "filesystem of /out"},
		{"/out/x", syscall.EIO, ""},
	} {
		told := daemon.Explain(to.explain(fmt.Errorf("make it: %w", &fs.PathError{Op: "write", Path: tt.path, Err: tt.err})))
		if told.Exit != control.ExitError || !strings.Contains(told.Hint, tt.hint) || !strings.HasPrefix(told.Message, "make it: ") {
			t.Errorf("%s, %v: %+v", tt.path, tt.err, told)
		}
	}
}

func TestPathTextQuotesWhatSpoilsTheOutput(t *testing.T) {
	for path, want := range map[string]string{"/a b/ü": "/a b/ü", "/a\nb": `"/a\nb"`, "/\x1b[2J": `"/\x1b[2J"`} {
		if got := pathText(path); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
