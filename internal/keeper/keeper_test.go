package keeper

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

var seed = flag.Uint64("seed", 0, "of the random moments; 0: of the clock")

const allHeld = "event,pipe-r,pipe-w,table"

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDescriptorsSurviveFiftyKilledWorkers(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", s)
	random := rand.New(rand.NewPCG(s, 0))
	f := startFamily(t, self(t), "")
	keeper := f.cmd.Process.Pid
	up := f.expect("up ")
	before := openFiles(t, keeper)
	starts := 1
	for range 50 {
		pid := number(t, up, "pid")
		if random.IntN(2) == 0 {
			// Some die while they begin.
			f.signal(pid, syscall.SIGKILL)
			pid = number(t, f.expect("event worker started:"), "pid")
			starts++
			<-time.After(time.Duration(random.IntN(15000)) * time.Microsecond)
		}
		f.signal(pid, syscall.SIGKILL)
		up = f.expect("up ")
		starts++
		// A worker that was up when it was killed is still in the lines.
		for number(t, up, "pid") == pid {
			up = f.expect("up ")
		}
		if got := field(t, up, "held"); got != allHeld {
			t.Fatalf("held: %s", got)
		}
		if got := number(t, up, "keeper"); got != keeper {
			t.Fatalf("keeper %d, want %d", got, keeper)
		}
	}
	count := number(t, up, "count")
	f.send("drain")
	drained := f.expect("drained")
	var inPipe, inEvent int
	if _, err := fmt.Sscanf(drained, "drained %d %d", &inPipe, &inEvent); err != nil {
		t.Fatal(err)
	}
	// A worker killed between the writes has only done the first of them.
	if count < 51 || inPipe > count || inEvent > inPipe || inEvent < 51 || count > starts {
		t.Errorf("%d starts, %d counted, %d in the pipe, %d in the eventfd", starts, count, inPipe, inEvent)
	}
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("descriptors of the keeper\nbefore %q\nafter  %q", before, after)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expect("bye")
	f.expect("last stop event pipe-r pipe-w table")
	f.expectEnd()
	if got := f.exit(); got != 0 {
		t.Errorf("exit status %d", got)
	}
}

func TestExitStatus(t *testing.T) {
	t.Run("worker that never was ready", func(t *testing.T) {
		f := startFamily(t, self(t), "refuses")
		lines := f.expectEnd()
		if slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "last stop") }) {
			t.Error("LastStop ran though nothing was held")
		}
		if got := f.exit(); got != 7 {
			t.Errorf("exit status %d", got)
		}
	})
	t.Run("program that is not there", func(t *testing.T) {
		exit, err := Run(t.Context(), Options{Path: filepath.Join(t.TempDir(), "none")})
		if exit != 1 || err == nil {
			t.Errorf("%d, %v", exit, err)
		}
	})
	for _, status := range []int{0, 4} {
		t.Run(fmt.Sprintf("announced stop with status %d", status), func(t *testing.T) {
			f := startFamily(t, self(t), "")
			f.expect("up ")
			f.send(fmt.Sprintf("stopping-exit %d", status))
			f.expectEnd()
			if got := f.exit(); got != status {
				t.Errorf("exit status %d", got)
			}
		})
	}
	t.Run("exit 0 without announcement is a death", func(t *testing.T) {
		f := startFamily(t, self(t), "")
		f.expect("up ")
		f.send("exit 0")
		f.expect("event worker ended")
		f.expect("up ")
		f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
		f.expectEnd()
		if got := f.exit(); got != 0 {
			t.Errorf("exit status %d", got)
		}
	})
}

func TestStopOrder(t *testing.T) {
	f := startFamily(t, self(t), "", testStop+"=2")
	f.expect("first ready")
	f.expect("up ")
	f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
	f.expect("bye")
	f.expect("event worker ended")
	var order []string
	for _, line := range f.expectEnd() {
		line, _, _ = strings.Cut(line, ":")
		order = append(order, line)
	}
	// Requests are denied all the while, and what is held is open.
	deny := slices.Index(order, "unattended event pipe-r pipe-w table")
	rest := slices.Delete(slices.Clone(order), deny, deny+1)
	want := []string{
		"last stop event pipe-r pipe-w table", "event " + LastStopError,
		"last stop event pipe-r pipe-w table", "event " + LastStopError,
		"last stop event pipe-r pipe-w table", "attended", "keeper ends",
	}
	if !slices.Equal(rest, want) {
		t.Errorf("order %q", order)
	}
	if got := f.exit(); got != 0 {
		t.Errorf("exit status %d", got)
	}
}

func TestStubbornWorkerIsKilled(t *testing.T) {
	f := startFamily(t, self(t), "stubborn")
	f.expect("up ")
	f.signal(f.cmd.Process.Pid, syscall.SIGINT)
	f.expect("event " + Killed)
	f.expect("last stop event pipe-r pipe-w table")
	f.expectEnd()
	if got := f.exit(); got != 1 {
		t.Errorf("exit status %d", got)
	}
}

// One that asks for more time is waited for.
func TestWorkerThatAsksForTimeStops(t *testing.T) {
	f := startFamily(t, self(t), "patient")
	f.expect("up ")
	f.signal(f.cmd.Process.Pid, syscall.SIGTERM)
	f.expect("bye")
	f.expectEnd()
	if got := f.exit(); got != 0 {
		t.Errorf("exit status %d", got)
	}
}

func TestPushes(t *testing.T) {
	f := startFamily(t, self(t), "")
	keeper := f.cmd.Process.Pid
	f.expect("up ")
	before := openFiles(t, keeper)
	f.send("push-again")
	if got := f.expect("pushed"); got != "pushed <nil>" {
		t.Error(got)
	}
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("a duplicate is held: %q", after)
	}
	f.send("push new")
	f.expect("pushed <nil>")
	f.send("push-and-die last")
	f.expect("dying <nil>")
	up := f.expect("up ")
	if got := field(t, up, "held"); got != "event,last,new,pipe-r,pipe-w,table" {
		t.Errorf("held %s", got)
	}
	f.send("remove new")
	f.expect("removed <nil>")
	f.send("remove last")
	f.expect("removed <nil>")
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("descriptors after removal\nbefore %q\nafter  %q", before, after)
	}
	for range 5 { // the limit of the test's keeper is 8
		f.send("push more")
		f.expect("pushed <nil>")
	}
	f.signal(number(t, up, "pid"), syscall.SIGKILL)
	if got := field(t, f.expect("up "), "held"); got != "event,more,more,more,more,pipe-r,pipe-w,table" {
		t.Errorf("held %s", got)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expectEnd()
}

func TestMessagesThatAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	f := startFamily(t, self(t), "", testAddress+"="+path)
	keeper := f.cmd.Process.Pid
	up := f.expect("up ")
	before := openFiles(t, keeper)
	if got := field(t, up, "address"); got != path {
		t.Fatalf("address %s", got)
	}
	for _, m := range []message{{push: true, name: "foreign"}, {stopping: true}, {remove: true, name: "table"}} {
		if err := sys.SendDatagram(path, m.encode(), []int{0}, 1); err != nil {
			t.Fatal(err)
		}
		if got := number(t, f.expect("event "+Refused), "pid"); got != os.Getpid() {
			t.Errorf("refused of %d", got)
		}
	}
	for _, text := range []string{"", "x", "=1", "FDSTORE=1", "FDSTOREREMOVE=1", "BARRIER=1\\nREADY=1",
		"FDSTORE=1\\nFDNAME=a:b", strings.Repeat("x=", 2049), "A\x00=1"} {
		f.send("raw " + text)
		f.expect("event " + Refused)
		f.expect("sent <nil>")
	}
	if after := openFiles(t, keeper); !slices.Equal(before, after) {
		t.Errorf("descriptors\nbefore %q\nafter  %q", before, after)
	}
	f.signal(keeper, syscall.SIGTERM)
	f.expect("last stop event pipe-r pipe-w table")
	f.expectEnd()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
