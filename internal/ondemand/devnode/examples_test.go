package devnode

import (
	"bufio"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// exampleDaemons are the commands of examples/README.md, up to their arguments.
func exampleDaemons(t *testing.T) map[string][]string {
	t.Helper()
	built := filepath.Join(t.TempDir(), "daemon")
	if out, err := exec.Command("go", "build", "-o", built, "../../../examples/go").CombinedOutput(); err != nil {
		t.Fatalf("build the Go example: %v\n%s", err, out)
	}
	return map[string][]string{
		"python": {"python3", "../../../examples/python/daemon.py"},
		"shell":  {"sh", "../../../examples/shell/daemon.sh"},
		"go":     {built},
	}
}

// process is a daemon in a process (group) of its own.
type process struct {
	*exec.Cmd
	lines *bufio.Scanner
}

func (b *bound) launch(t *testing.T, command []string) *process {
	t.Helper()
	cmd := exec.Command(command[0], append(command[1:], b.socket, b.dir, b.source)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = patience
	check(t, cmd.Start())
	p := &process{cmd, bufio.NewScanner(out)}
	t.Cleanup(p.kill)
	if !p.lines.Scan() || p.lines.Text() != "ready" {
		t.Fatalf("%v printed %q instead of ready", command, p.lines.Text())
	}
	return p
}

// kill ends the daemon and its children with SIGKILL.
func (p *process) kill() {
	if p.ProcessState == nil {
		syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		p.Wait()
	}
}

func TestExamplesServe(t *testing.T) {
	for name, command := range exampleDaemons(t) {
		t.Run(name, func(t *testing.T) {
			sizes := map[string]int{"a": 1<<20 + 1234, "b with space": 4096, "c": 1}
			b := serve(t, sizes)
			p := b.launch(t, command)
			if st := b.Status(); st.Tag != name || st.PID != p.Process.Pid {
				t.Errorf("status %+v", st)
			}
			var all sync.WaitGroup
			for leaf, size := range sizes {
				id := b.object(t, leaf).ID()
				for off := 0; off < size; off += 128 << 10 {
					if !b.Status().Bound { // fails at once, as other tests show
						<-time.After(time.Millisecond)
					}
					r := ondemand.Range{Off: int64(off), Len: 128 << 10}
					all.Go(func() {
						if err := b.Fill(t.Context(), id, r); err != nil {
							t.Error(err)
						}
					})
				}
			}
			all.Wait()
			for leaf, size := range sizes {
				if !b.object(t, leaf).Complete() {
					t.Errorf("%s is not complete", leaf)
				}
				b.same(t, leaf, 0, int64(size))
			}
			check(t, os.Remove(filepath.Join(b.source, "a")))
			makeHole(t, filepath.Join(b.source, "a"), 0)
			p.kill()
			until(t, "the daemon's end is noticed", func() bool { return b.Status().PID == 0 })
		})
	}
}

func TestExamplesReportWhatTheyCannotFill(t *testing.T) {
	for name, command := range exampleDaemons(t) {
		t.Run(name, func(t *testing.T) {
			b := serve(t, map[string]int{"gone": 8192, "there": 8192})
			b.launch(t, command)
			check(t, os.Remove(filepath.Join(b.source, "gone")))
			if err := result(t, b.miss(t, "gone", 0, 8192)); ondemand.Errno(err) != syscall.EIO {
				t.Errorf("got %v", err)
			}
			check(t, result(t, b.miss(t, "there", 0, 8192)))
			b.same(t, "there", 0, 8192)
		})
	}
}

// TestAcceptance18DaemonKilledFiftyTimes: under load, with a daemon
// that is killed and started again, each fill ends with right bytes or EIO.
func TestAcceptance18DaemonKilledFiftyTimes(t *testing.T) {
	const size, kills, readers = 8 << 20, 50, 8
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	command := exampleDaemons(t)["go"]
	b := serve(t, map[string]int{"blob": size})
	o := b.object(t, "blob")
	stop := make(chan struct{})
	var counts struct {
		sync.Mutex
		right, flushed int
	}
	var all sync.WaitGroup
	for i := range readers {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !b.Status().Bound { // fails at once, as other tests show
					<-time.After(time.Millisecond)
				}
				r := ondemand.Range{Off: rnd.Int64N(size/4096) * 4096, Len: 4096 << rnd.IntN(6)}.Intersect(ondemand.Range{Len: size})
				err := b.Fill(t.Context(), o.ID(), r)
				counts.Lock()
				switch {
				case err == nil:
					counts.right++
				case errors.Is(err, ondemand.ErrFlushed):
					counts.flushed++
				default:
					t.Error(err)
				}
				counts.Unlock()
				if err == nil {
					b.same(t, "blob", r.Off, r.Len)
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, readers))
	for range kills {
		p := b.launch(t, command)
		handed := b.Status().HandedOut + uint64(rnd.IntN(5))
		until(t, "work is under way", func() bool { return b.Status().HandedOut >= handed || o.Complete() })
		p.kill()
		if o.Complete() { // make room for misses again
			o.presence.Clear(ondemand.Range{Len: size})
		}
	}
	close(stop)
	all.Wait()
	t.Logf("daemon killed %d times: %d fills right, %d flushed", kills, counts.right, counts.flushed)
	if st := b.Status(); st.Pending != 0 {
		t.Errorf("%d requests left over", st.Pending)
	}
	if counts.right == 0 {
		t.Error("nothing was ever filled")
	}
}
