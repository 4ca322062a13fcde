package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
	"github.com/lacunafs/lacuna/test/instance"
)

// A worker that dies in the middle of an attach leaves nothing that its successor
// does not go on with or undo.
func TestWorkerKilledWhileItAttaches(t *testing.T) {
	rng := instance.Rand(t)
	a := newAttached(t, "")
	a.StartDaemon()
	attached := 0
	for n := range 12 {
		file := fmt.Sprint(a.file, n)
		done := make(chan error, 1)
		go func() {
			_, err := a.Try("attach", a.server.URL()+"?"+fmt.Sprint(n), file)
			done <- err
		}()
		instance.Pause(20*time.Millisecond + time.Duration(rng.Int64N(int64(60*time.Millisecond))))
		a.Kill(a.Worker())
		err := <-done
		a.WaitReady()
		st, err2 := os.Stat(file)
		switch {
		case err == nil && (err2 != nil || st.Size() != attachedSize):
			t.Fatalf("it was attached and is not there: %v, %v", st, err2)
		case err2 == nil && st.Size() != attachedSize:
			t.Fatalf("the placeholder of %v is left: %v", err, st)
		case err2 == nil:
			attached++
			if r := a.reader.Read(file, 5<<20, 5000); !bytes.Equal(r.Data, pattern(stormSeed, 5<<20, 5000)) {
				t.Fatalf("read: %v", r.Errno)
			}
		}
		if s := a.Status(); len(s.Attached) != attached || len(instance.MountsBelow(a.Dir)) != attached {
			t.Fatalf("%d are attached: %+v, mounts %v", attached, s.Attached, instance.MountsBelow(a.Dir))
		}
		if left, err := filepath.Glob(filepath.Join(a.Root, "step-*")); err != nil || len(left) > 0 {
			t.Fatalf("left: %v, %v", left, err)
		}
	}
	t.Logf("%d of 12 were attached", attached)
	a.Stop()
	a.wantGone()
}

// A file that is complete when it is attached is read past the cache's copy of it,
// where the disk can, and has the same bytes, also when the worker dies.
func TestCompleteFileAttachedAnewIsReadDirectly(t *testing.T) {
	a := attachedToDaemon(t, "")
	direct := func(want bool) {
		t.Helper()
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if strings.Contains(l, " "+a.file+" ") && strings.Contains(l, ",directio") != want {
				t.Errorf("directly: want %v of %s", want, l)
			}
		}
	}
	direct(false)
	a.wantWhole(a.file)
	a.Lacuna("detach", a.file)
	a.Lacuna("attach", a.server.URL(), a.file)
	data, err := filepath.Glob(filepath.Join(a.Root, "objects/*/*/data"))
	if err != nil || len(data) != 1 {
		t.Fatalf("objects: %v, %v", data, err)
	}
	n, err := sys.DirectAlignment(data[0])
	if err != nil {
		t.Fatal(err)
	}
	direct(n > 0 && n <= 4096)
	a.wantWhole(a.file)
	a.Kill(a.Worker())
	a.WaitReady()
	a.wantWhole(a.file)
}
