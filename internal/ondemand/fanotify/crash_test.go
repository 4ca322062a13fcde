package fanotify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/sys"
)

// victimEnv makes the test binary a process that takes events and dies.
const victimEnv = "LACUNA_TEST_VICTIM"

// victimTask is what the process is to do. It has the group and the in-flight
// table as descriptors 3 and 4.
type victimTask struct {
	// Files are attached, in order; each has Size bytes.
	Files []string
	Size  int64
	// How it takes events: "serve" as a front end does, whose fills bring
	// nothing; "adopt" the same, with those of the process before; "read"
	// into the shared buffer only; "hide" into its own memory.
	How string
}

// beVictim does what startVictim wants where this process was started by it.
func beVictim() {
	text := os.Getenv(victimEnv)
	if text == "" {
		return
	}
	err := victim(text)
	fmt.Fprintln(os.Stderr, "victim:", err)
	os.Exit(1)
}

// named is an object of which nothing is present.
type named struct {
	*ondemand.Presence
	id ondemand.ObjectID
}

func (n named) ID() ondemand.ObjectID { return n.id }

func victim(text string) error {
	var task victimTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	group := sys.NewFD(3)
	if err := sys.SetNonblock(3, true); err != nil { // ExtraFiles made it blocking
		return err
	}
	flight, err := OpenInflight(sys.NewFD(4))
	if err != nil {
		return err
	}
	var legacy *Legacy
	if task.How == "adopt" {
		if legacy, err = Occupy(group, flight, []*sys.FD{group, flight.FD()}); err != nil {
			return err
		}
	}
	table := ondemand.NewTable(sleeps{}, ondemand.TableOptions{Deadline: time.Hour})
	fe := New(Options{Group: group, Inflight: flight, Table: table, Descriptors: 1000})
	for i, path := range task.Files {
		o := named{ondemand.NewPresence(task.Size), ondemand.ObjectID(fmt.Sprint("victim", i))}
		if err := fe.Attach(o, path, nobody); err != nil {
			return err
		}
	}
	if legacy != nil {
		if err := fe.Adopt(legacy); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	switch task.How {
	case "serve", "adopt":
		return fe.Serve(context.Background())
	case "read", "hide":
		buf := flight.buffer()
		if task.How == "hide" {
			buf = make([]byte, len(buf))
		}
		for {
			if _, err := sys.WaitReadable(group, -1); err != nil {
				return err
			}
			n, err := sys.Read(group, buf)
			if err != nil {
				return err
			}
			fmt.Println("read", n/sys.FanotifyEventSize)
			buf = buf[n:]
		}
	}
	return errors.New("unknown task")
}

// victimProcess is a running victim.
type victimProcess struct {
	*exec.Cmd
	out *bufio.Reader
}

// startVictim starts one that takes over in's group, and returns when it is ready.
func startVictim(t testing.TB, in *instance, how string, objs []*ondemandtest.Object) *victimProcess {
	t.Helper()
	task := victimTask{Size: objs[0].Size(), How: how}
	for _, o := range objs {
		task.Files = append(task.Files, o.Path)
	}
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	for _, fd := range []*sys.FD{in.group, in.flight.FD()} {
		dup, err := fd.Dup()
		if err != nil {
			t.Fatal(err)
		}
		f := dup.File("inherited")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victimProcess{cmd, bufio.NewReader(out)}
	t.Cleanup(v.kill)
	v.says(t, "ready")
	return v
}

// says reads the next line, which must begin with want, and returns its number.
func (v *victimProcess) says(t testing.TB, want string) (n int) {
	t.Helper()
	line, err := v.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var word string
	fmt.Sscan(line, &word, &n)
	if word != want {
		t.Fatalf("victim said %q", line)
	}
	return n
}

func (v *victimProcess) kill() {
	if v.ProcessState == nil {
		_ = v.Process.Kill() // it may have ended by itself
		_ = v.Wait()
	}
}

// orphaned starts reads of objs, n of each, and a victim that takes them and dies.
func orphaned(t testing.TB, how string, objs []*ondemandtest.Object, n int) (in *instance, results [][]<-chan ondemandtest.Result) {
	t.Helper()
	in = attach(t, prepare(t, Options{Table: tableOf(objs...)}))
	v := startVictim(t, in, how, objs)
	reader := ondemandtest.StartReader(t)
	results = make([][]<-chan ondemandtest.Result, len(objs))
	for i, o := range objs {
		for k := range int64(n) {
			results[i] = append(results[i], reader.Start(o.Path, k<<16, 8192))
		}
	}
	if how == "serve" {
		until(t, "all reads are in the table", func() bool { return in.entered() == n*len(objs) })
	} else {
		for left := n * len(objs); left > 0; {
			left -= v.says(t, "read")
		}
	}
	v.kill()
	return in, results
}

// entered is the number of events that stand in the table with their file.
func (in *instance) entered() (n int) {
	for _, ev := range in.flight.outstanding() {
		if ev.inode != (sys.Inode{}) {
			n++
		}
	}
	return n
}

// adopt goes on with what a victim has left.
func (in *instance) adopt(t testing.TB, objs []*ondemandtest.Object, inherited ...*sys.FD) *Legacy {
	t.Helper()
	l, err := Occupy(in.group, in.flight, inherited)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objs {
		if _, err := in.Attach(o); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.fe.Adopt(l); err != nil {
		t.Fatal(err)
	}
	in.serve()
	return l
}

func allGive(t testing.TB, results [][]<-chan ondemandtest.Result, objs []*ondemandtest.Object) {
	t.Helper()
	for i, o := range objs {
		for k, c := range results[i] {
			gives(t, <-c, o, ondemand.Range{Off: int64(k) << 16, Len: 8192})
		}
	}
}

// The numbers of the dead process's events are partly in use here, for pipes and
// files of the test; they must stay what they are.
func TestReadsOfAKilledProcessGoOn(t *testing.T) {
	const n = 30
	objs := objects(t, 3, n<<16)
	in, results := orphaned(t, "serve", objs, n)
	before := openFiles(t)
	l := in.adopt(t, objs)
	if l.Len() != 3*n || len(l.keep) == 0 || len(l.keep) == l.Len() {
		t.Errorf("%d events, %d on numbers in use: the test needs some of both kinds", l.Len(), len(l.keep))
	}
	allGive(t, results, objs)
	until(t, "the table is empty", func() bool { return len(in.flight.outstanding()) == 0 })
	for number, target := range before {
		if got := openFiles(t)[number]; got != target {
			t.Errorf("descriptor %s was %s and is %s", number, target, got)
		}
	}
	reader := ondemandtest.StartReader(t)
	gives(t, reader.Read(objs[0].Path, 12288, 4096), objs[0], ondemand.Range{Off: 12288, Len: 4096})
	if err := in.fe.Adopt(l); err == nil {
		t.Error("adopted twice")
	}
}

// openFiles maps the numbers of open descriptors to what they lead to.
func openFiles(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[string]string)
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			open[e.Name()] = target
		}
	}
	return open
}

func TestInheritedDescriptorMovesOffANeededNumber(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	in, results := orphaned(t, "serve", objs, 16)
	number := -1
	for _, ev := range in.flight.outstanding() {
		if !sys.IsOpen(ev.number) {
			number = ev.number
		}
	}
	if number < 0 {
		t.Fatal("every number is in use here")
	}
	if err := sys.DupOnto(in.flight.FD().Int(), number); err != nil {
		t.Fatal(err)
	}
	inherited := sys.NewFD(number)
	l := in.adopt(t, objs, in.group, in.flight.FD(), inherited)
	if inherited.Int() == number || !sys.IsOpen(inherited.Int()) {
		t.Errorf("the inherited descriptor was %d and is %d", number, inherited.Int())
	}
	if l.keep[number] {
		t.Error("the number is kept though nobody has it any more")
	}
	allGive(t, results, objs)
	if err := inherited.Close(); err != nil {
		t.Error(err)
	}
}

func TestEventThatStoodInTheBufferOnly(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("objects=%d", n), func(t *testing.T) {
			objs := objects(t, n, 1<<20)
			in, results := orphaned(t, "read", objs, 5)
			l := in.adopt(t, objs)
			if l.Len() != 5*n {
				t.Errorf("%d events", l.Len())
			}
			allGive(t, results, objs)
		})
	}
}

// It may be for the file that is not attached any more, whose holes nobody fills.
func TestEventInTheBufferIsDeniedWhereAMarkedFileIsNotAttached(t *testing.T) {
	objs := objects(t, 2, 1<<20)
	in, results := orphaned(t, "read", objs, 5)
	in.adopt(t, objs[:1])
	for _, list := range results {
		for _, c := range list {
			denies(t, <-c, syscall.EIO)
		}
	}
}

func TestEventThatNothingExplainsIsDenied(t *testing.T) {
	objs := objects(t, 2, 1<<20)
	in, results := orphaned(t, "hide", objs, 3)
	if l := in.adopt(t, objs); l.Len() != 0 {
		t.Errorf("%d events", l.Len())
	}
	for _, list := range results {
		for _, c := range list {
			denies(t, <-c, syscall.EIO)
		}
	}
	gives(t, ondemandtest.StartReader(t).Read(objs[0].Path, 0, 4096), objs[0], ondemand.Range{Len: 4096})
}

func TestReadOfAnObjectThatIsGoneIsDenied(t *testing.T) {
	objs := objects(t, 2, 1<<20)
	in, results := orphaned(t, "serve", objs, 4)
	in.adopt(t, objs[:1])
	allGive(t, results[:1], objs[:1])
	for _, c := range results[1] {
		denies(t, <-c, syscall.EIO)
	}
}

func TestDetachEndsAdoptedReads(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	in, results := orphaned(t, "serve", objs, 4)
	if err := in.table.Close(); err != nil {
		t.Fatal(err)
	}
	in.table = newTable(sleeps{})
	in.fe.o.Table = in.table
	in.adopt(t, objs)
	if err := in.fe.Detach(objs[0].ID()); err != nil {
		t.Fatal(err)
	}
	for _, c := range results[0] {
		denies(t, <-c, syscall.EBUSY)
	}
}

// The sleep of a read goes on counting in the next process.
func TestDeadlineReachesOverACrash(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	in, results := orphaned(t, "serve", objs, 1)
	slept := in.flight.outstanding()[0].since
	if err := in.table.Close(); err != nil {
		t.Fatal(err)
	}
	in.table = ondemand.NewTable(sleeps{}, ondemand.TableOptions{Deadline: sys.Monotonic() - slept + 100*time.Millisecond})
	in.fe.o.Table = in.table
	in.adopt(t, objs)
	denies(t, <-results[0][0], syscall.EIO)
	if s := in.table.Stats(); s.Expired != 1 {
		t.Errorf("counters %+v", s)
	}
}

func TestDenyAll(t *testing.T) {
	for _, how := range []string{"serve", "hide"} {
		t.Run(how, func(t *testing.T) {
			objs := objects(t, 2, 1<<20)
			in, results := orphaned(t, how, objs, 10)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- DenyAll(ctx, in.group, in.flight) }()
			for _, list := range results {
				for _, c := range list {
					denies(t, <-c, syscall.EIO)
				}
			}
			reader := ondemandtest.StartReader(t)
			var fresh []<-chan ondemandtest.Result
			for k := range int64(200) {
				fresh = append(fresh, reader.Start(objs[k%2].Path, k<<12, 4096))
			}
			for _, c := range fresh {
				denies(t, <-c, syscall.EIO)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if left := in.flight.outstanding(); len(left) != 0 {
				t.Errorf("%d events are left in the table", len(left))
			}
			// A worker comes after all.
			in.adopt(t, objs)
			gives(t, reader.Read(objs[1].Path, 0, 4096), objs[1], ondemand.Range{Len: 4096})
		})
	}
}

// One victim dies again and again under readers, which never see it.
func TestManyCrashesUnderReaders(t *testing.T) {
	const crashes = 10
	objs := objects(t, 2, 1<<20)
	in := attach(t, prepare(t, Options{Table: tableOf(objs...)}))
	v := startVictim(t, in, "serve", objs)
	reader := ondemandtest.StartReader(t)
	done := make(chan struct{})
	var reads atomic.Int64
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			o := objs[i%2]
			for off := int64(0); off < 1<<20; off += 1 << 16 {
				res := reader.Read(o.Path, off+int64(i)<<12, 4096)
				reads.Add(1)
				if res.Err != nil || res.Errno != 0 || string(res.Data) != string(ondemandtest.Bytes(o.Seed, ondemand.Range{Off: off + int64(i)<<12, Len: 4096})) {
					t.Errorf("read at %d: errno %v, error %v, or wrong bytes", off, res.Errno, res.Err)
				}
			}
		}()
	}
	until(t, "the readers sleep", func() bool { return in.entered() == 8 })
	for range crashes {
		v.kill()
		v = startVictim(t, in, "adopt", objs)
		until(t, "the readers sleep", func() bool { return in.entered() == 8 })
	}
	v.kill()
	in.adopt(t, objs)
	for range 8 {
		<-done
	}
	t.Logf("%d reads", reads.Load())
}

func nobody(int) bool { return false }
