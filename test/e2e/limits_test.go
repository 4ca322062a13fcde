package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/test/instance"
)

func TestManyReadsPendingAtOnce(t *testing.T) {
	const processes, step = 8, 256 << 10
	const size = processes * 2500 * step
	i := newLacuna(t, "deadline = \"14m\"\nstall = \"14m\"\n")
	gate := make(chan struct{})
	closed := make(chan struct{}) // from then on answers wait for the gate
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-closed:
			<-gate
		default:
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(mem.PatternAt(stormSeed), 0, size))
	}))
	t.Cleanup(server.Close)
	i.StartDaemon()
	file := filepath.Join(i.Dir, "file")
	i.Lacuna("attach", server.URL, file)
	close(closed)
	opened := false
	t.Cleanup(func() {
		if !opened {
			close(gate)
		}
	})
	const each = 2500
	var readers []*many
	began := time.Now()
	for n := range processes {
		readers = append(readers, startMany(t, manyOrder{Path: file, Off: int64(n*each) * step, Step: step, Readers: each}))
	}
	instance.Eventually(t, 5*time.Minute, func() error {
		if n := asleep(readers); n != processes*each {
			return fmt.Errorf("%d readers sleep", n)
		}
		return nil
	})
	// Those that the limit of open files leaves no descriptor for wait in the kernel's queue.
	taken := i.Status().Requests.Pending
	fds, rss := descriptorsOf(t, i.Worker()), residentOf(t, i.Worker())
	t.Logf("%d reads pending, %d of them in the table, after %v; the worker has %d descriptors, %d MiB", processes*each, taken, time.Since(began).Round(time.Millisecond), fds, rss>>20)
	close(gate)
	opened = true
	began = time.Now()
	right := 0
	for _, r := range readers {
		right += r.right(t)
	}
	t.Logf("%d of them right, %v after the gate was opened", right, time.Since(began).Round(time.Millisecond))
	if right != processes*each {
		t.Errorf("%d of %d reads gave the right bytes", right, processes*each)
	}
	if s := i.Status(); s.Requests.Pending != 0 || s.Requests.Failed != 0 {
		t.Errorf("requests: %+v", s.Requests)
	}
	i.Lacuna("detach", file)
	i.Check()
}

// asleep counts the threads of the readers that are inside pread: all of them
// wait, since nothing is answered.
func asleep(readers []*many) (n int) {
	inside := fmt.Sprintf("%d ", syscall.SYS_PREAD64)
	for _, r := range readers {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", r.cmd.Process.Pid))
		for _, task := range tasks {
			if b, err := os.ReadFile(task); err == nil && strings.HasPrefix(string(b), inside) {
				n++
			}
		}
	}
	return n
}

func TestTerabyteObject(t *testing.T) {
	const size = 1 << 40
	i := newLacuna(t, "")
	server := sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), size)
	i.StartDaemon()
	file := filepath.Join(i.Dir, "file")
	began := time.Now()
	i.Lacuna("attach", server.URL(), file)
	t.Logf("1 TiB attached in %v", time.Since(began).Round(time.Millisecond))
	reader := ondemandtest.StartReader(t)
	for _, off := range []int64{size - 4096, size - 1, size/2 + 1, 0} {
		n := int(min(4096, size-off))
		began := time.Now()
		r := reader.Read(file, off, 4096)
		if r.Errno != 0 || r.Err != nil || !bytes.Equal(r.Data, pattern(stormSeed, off, n)) {
			t.Fatalf("read at %d: %v %v, %d bytes", off, r.Errno, r.Err, len(r.Data))
		}
		t.Logf("read at %d after %v", off, time.Since(began).Round(10*time.Microsecond))
	}
	began = time.Now()
	i.Lacuna("detach", file)
	t.Logf("detached in %v", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	i.Check()
	t.Logf("checked in %v", time.Since(began).Round(time.Millisecond))
}

func TestManyAttachedFiles(t *testing.T) {
	i := newLacuna(t, "")
	server := sourcetest.NewServerAt(t, mem.PatternAt(stormSeed), 1<<20)
	i.StartDaemon()
	worker := i.Worker()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	client, err := control.Dial(ctx, filepath.Join(i.Root, "lacuna.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { client.Close() }()
	reader := ondemandtest.StartReader(t)
	file := func(n int) string { return filepath.Join(i.Dir, fmt.Sprintf("file%d", n)) }
	round := func(from, to int) {
		began := time.Now()
		for n := from; n < to; n++ {
			if _, err := client.Attach(ctx, control.AttachRequest{Source: fmt.Sprintf("%s?%d", server.URL(), n), File: file(n)}); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d files attached: %v each", to-from, (time.Since(began) / time.Duration(to-from)).Round(time.Microsecond))
		for n := from; n < to; n++ {
			off := int64(n) * 500
			if r := reader.Read(file(n), off, 4096); r.Errno != 0 || !bytes.Equal(r.Data, pattern(stormSeed, off, len(r.Data))) {
				t.Fatalf("read of file %d: %v", n, r.Errno)
			}
		}
		fds, rss := descriptorsOf(t, worker), residentOf(t, worker)
		t.Logf("all read: %d descriptors, %d MiB", fds, rss>>20)
		if to-from > 10 {
			began = time.Now()
			i.Kill(worker)
			client.Close()
			worker = i.WaitWorker(worker)
			if r := reader.Read(file(from), 900000, 4096); !bytes.Equal(r.Data, pattern(stormSeed, 900000, 4096)) {
				t.Fatalf("read after the worker was killed: %v", r.Errno)
			}
			t.Logf("killed: the next worker serves after %v", time.Since(began).Round(time.Millisecond))
			i.WaitReady()
			if client, err = control.Dial(ctx, filepath.Join(i.Root, "lacuna.sock")); err != nil {
				t.Fatal(err)
			}
		}
		began = time.Now()
		for n := from; n < to; n++ {
			instance.Eventually(t, 30*time.Second, func() error { // another test may have a mount namespace
				return client.Detach(ctx, control.DetachRequest{Path: file(n)})
			})
		}
		t.Logf("detached: %v each", (time.Since(began) / time.Duration(to-from)).Round(time.Microsecond))
	}
	round(0, 10) // connections and the like are there from then on
	fds, rss := descriptorsOf(t, worker), residentOf(t, worker)
	round(10, 10+attachedFiles)
	after := descriptorsOf(t, worker)
	t.Logf("descriptors %d, then %d; resident %d MiB, then %d MiB", fds, after, rss>>20, residentOf(t, worker)>>20)
	if after > fds+8 {
		t.Errorf("%d descriptors before, %d after", fds, after)
	}
	if i.Worker() != worker {
		t.Error("the worker is another one")
	}
	if left, err := os.ReadDir(filepath.Join(i.Root, "served")); err != nil || len(left) > 0 {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// residentOf is the resident memory in bytes (VmRSS, proc_pid_status(5)).
func residentOf(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
