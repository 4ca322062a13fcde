package devnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

func TestRequestIsHandedOutFilledAndDone(t *testing.T) {
	b := serve(t, map[string]int{"blob": 10000})
	c := b.bind(t)
	fill := b.miss(t, "blob", 4096, 4096)
	r := c.record()
	if want := (proto.Record{ID: 1, Off: 4096, Len: 4096, Path: "blob"}); r != want {
		t.Fatalf("record %+v, want %+v", r, want)
	}
	b.pour(t, r)
	c.say("done %d", r.ID)
	check(t, result(t, fill))
	b.same(t, "blob", 4096, 4096)
	if o := b.object(t, "blob"); o.Present() != 4096 || o.Complete() {
		t.Fatalf("%d bytes present", o.Present())
	}
	if st := b.Status(); st.Counters != (Counters{HandedOut: 1, Done: 1}) || st.Tag != "test" || !st.Bound {
		t.Fatalf("status %+v", st)
	}
	check(t, b.Fill(t.Context(), b.object(t, "blob").ID(), ondemand.Range{Off: 5000, Len: 10}))
	if st := b.Status(); st.HandedOut != 1 {
		t.Error("a present range was handed out")
	}
}

func TestRangeIsClippedToTheFile(t *testing.T) {
	b := serve(t, map[string]int{"blob": 10000, "empty": 0})
	c := b.bind(t)
	fill := b.miss(t, "blob", 9000, 1<<40)
	r := c.record()
	if r.Off != 8192 || r.Len != 10000-8192 {
		t.Fatalf("record %+v", r)
	}
	b.pour(t, r)
	c.say("done %#x", r.ID)
	check(t, result(t, fill))
	for leaf, off := range map[string]int64{"blob": 1 << 30, "empty": 0} {
		check(t, b.Fill(t.Context(), b.object(t, leaf).ID(), ondemand.Range{Off: off, Len: 5}))
	}
	if err := b.Fill(t.Context(), "bind:1:no", ondemand.Range{Len: 1}); !errors.Is(err, ErrNoObject) {
		t.Error(err)
	}
}

func TestRequestIsHandedOutOnce(t *testing.T) {
	b := serve(t, map[string]int{"blob": 8192})
	c := b.bind(t)
	first, second := b.miss(t, "blob", 0, 4096), b.miss(t, "blob", 4096, 4096)
	r1, r2 := c.record(), c.record()
	if r1.ID == r2.ID || r1.Off == r2.Off {
		t.Fatalf("records %+v and %+v", r1, r2)
	}
	c.sync() // nothing else comes
	c.say("done %d EIO", r1.ID)
	c.refused(syscall.EINVAL, "done %d", r1.ID)
	c.say("done %d EIO", r2.ID)
	for _, fill := range []<-chan error{first, second} {
		if err := result(t, fill); ondemand.Errno(err) != syscall.EIO {
			t.Error(err)
		}
	}
	again := b.miss(t, "blob", 0, 4096)
	if r := c.record(); r.ID == r1.ID || r.ID == r2.ID {
		t.Errorf("id %d came again", r.ID)
	}
	c.refused(syscall.EINVAL, "done %d", r1.ID)
	c.Close()
	result(t, again)
}

func TestPollAndNonblockingRead(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := b.bind(t)
	rc, err := c.SyscallConn()
	check(t, err)
	receive := func(size int) (n int, err error) {
		buf := make([]byte, size)
		inner := rc.Control(func(fd uintptr) {
			n, _, err = syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT)
		})
		check(t, inner)
		return n, err
	}
	if _, err := receive(280); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("nothing pending: %v, want EAGAIN", err)
	}
	fill := b.miss(t, "blob", 0, 4096)
	// Waiting for the descriptor to become readable is what poll does.
	check(t, rc.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return !errors.Is(err, syscall.EAGAIN)
	}))
	if n, err := receive(100); n != 100 || err != nil {
		t.Fatalf("short buffer: %d, %v", n, err)
	}
	if _, err := receive(280); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("the rest of the record: %v, want EAGAIN", err)
	}
	c.say("done 1 ENOSPC")
	if err := result(t, fill); ondemand.Errno(err) != syscall.ENOSPC {
		t.Error(err)
	}
}

func TestDaemonChoosesTheErrno(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := b.bind(t)
	for text, want := range map[string]syscall.Errno{
		"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "122": syscall.EDQUOT, "EPERM": syscall.EPERM,
		"EAGAIN": syscall.EAGAIN, "0x10": syscall.EBUSY, "ENOENT": syscall.EIO, "4095": syscall.EIO,
	} {
		fill := b.miss(t, "blob", 0, 4096)
		c.say("done %d %s", c.record().ID, text)
		if got := ondemand.Errno(result(t, fill)); got != want {
			t.Errorf("done with %s gave %v", text, got)
		}
	}
}

func TestCommandsOutOfOrderAreRefused(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := connect(t, b.socket)
	c.refused(syscall.EINVAL, "bind")
	c.refused(syscall.EINVAL, "done 1")
	c.refused(syscall.EINVAL, "dir relative")
	c.refused(syscall.ENOENT, "dir %s/none", b.dir)
	c.refused(syscall.EINVAL, "dir %s", b.source)
	c.refused(syscall.EOPNOTSUPP, "cull x")
	c.refused(syscall.EINVAL, "%s", strings.Repeat("x", 100))
	c.refused(syscall.EOPNOTSUPP, "tag %s", strings.Repeat("x", 5000))
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(b.dir, link))
	c.say("dir %s", link) // the same directory by another name
	c.refused(syscall.EEXIST, "dir %s", b.dir)
	c.say("tag one")
	c.refused(syscall.EEXIST, "tag two")
	if err := result(t, b.miss(t, "blob", 0, 1)); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("fill before bind: %v", err)
	}
	c.say("bind\n")
	c.refused(syscall.EBUSY, "bind")
	// An empty message is an empty command, not the end.
	_, _, err := c.WriteMsgUnix(nil, nil, nil)
	check(t, err)
	c.hearRefusal(syscall.EINVAL)
	c.sync()
}

func TestDescriptorOfTheBackingFile(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := b.bind(t)
	fill := b.miss(t, "blob", 0, 4096)
	r := c.record()
	c.refused(syscall.EINVAL, "fd %d", r.ID+1)
	c.say("fd %d", r.ID)
	buf, oob := make([]byte, 280), make([]byte, 64)
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	check(t, err)
	if got := string(buf[:n]); got != fmt.Sprintf("fd %d", r.ID) {
		t.Fatalf("answer %q", got)
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
	check(t, err)
	fds, err := syscall.ParseUnixRights(&msgs[0])
	check(t, err)
	f := os.NewFile(uintptr(fds[0]), "backing")
	defer f.Close()
	_, err = f.WriteAt(content("blob", 4096), 0)
	check(t, err)
	c.say("done %d", r.ID)
	check(t, result(t, fill))
	b.same(t, "blob", 0, 4096)
	c.refused(syscall.EINVAL, "fd %d", r.ID)
}

func TestSecondDaemonIsTurnedAway(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	first := b.bind(t)
	second := connect(t, b.socket)
	second.Write([]byte("dir " + b.dir)) // may fail already
	if e := second.hearRefusal(syscall.EBUSY); !strings.Contains(e.Reason, fmt.Sprint(os.Getpid())) {
		t.Errorf("%v does not name the first", e)
	}
	if n, err := second.Read(make([]byte, 300)); n > 0 || err == nil {
		t.Errorf("still connected: %d, %v", n, err)
	}
	fill := b.miss(t, "blob", 0, 4096)
	r := first.record()
	b.pour(t, r)
	first.say("done %d", r.ID)
	check(t, result(t, fill))
}

func TestDaemonMayComeAgainAtOnce(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	for range 200 {
		c := b.bind(t)
		check(t, c.Close())
	}
}

func TestOtherUsersAreRefused(t *testing.T) {
	featurestest.NeedRoot(t) // to start a process of another user
	b := serve(t, map[string]int{"blob": 4096})
	info, err := os.Stat(b.socket)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v", info.Mode())
	}
	// As if it had connected before the mode was set.
	check(t, os.Chmod(b.socket, 0o666))
	check(t, os.Chmod(filepath.Dir(b.socket), 0o755))
	out := asNobody(t, b.socket)
	if !strings.HasPrefix(out, "error 1 EPERM open: ") {
		t.Errorf("answer %q", out)
	}
	b.bind(t)
}

func TestDeadlineDropsTheRequest(t *testing.T) {
	b := serve(t, map[string]int{"blob": 8192})
	c := b.bind(t)
	ctx, cancel := context.WithCancel(t.Context())
	fill := b.missContext(t, ctx, "blob", 0, 4096)
	r := c.record()
	cancel()
	if err := result(t, fill); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.pour(t, r)
	c.refused(syscall.EINVAL, "done %d", r.ID)
	if b.object(t, "blob").Has(ondemand.Range{Len: 1}) {
		t.Error("data counts without a done")
	}
	again := b.miss(t, "blob", 0, 4096)
	c.say("done %d", c.record().ID)
	check(t, result(t, again))
	if st := b.Status(); st.Failed != 1 || st.Done != 1 || st.Pending != 0 {
		t.Errorf("status %+v", st)
	}
	ended, end := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer end()
	if err := result(t, b.missContext(t, ended, "blob", 4096, 4096)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestTwentyThousandPending(t *testing.T) {
	const n = 20000
	b := serve(t, map[string]int{"blob": n * 4096})
	c := b.bind(t)
	id := b.object(t, "blob").ID()
	failed := make(chan error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := b.Fill(t.Context(), id, ondemand.Range{Off: int64(i) * 4096, Len: 4096}); err != nil {
				failed <- err
			}
		})
	}
	until(t, "all are pending", func() bool { return b.Status().Pending == n })
	// The socket holds a few hundred; one that is refused must still be
	// answered while the daemon does not read.
	for range 100 {
		c.say("done 0")
	}
	f := b.object(t, "blob").File()
	seen := map[uint64]bool{}
	for refusals := 0; len(seen) < n || refusals < 100; {
		msg := []byte(c.hear())
		if len(msg) != proto.RecordSize {
			refusals++
			continue
		}
		r, err := proto.ParseRecord(msg)
		check(t, err)
		if seen[r.Off] {
			t.Fatalf("offset %d was handed out twice", r.Off)
		}
		seen[r.Off] = true
		_, err = f.WriteAt(make([]byte, r.Len), int64(r.Off))
		check(t, err)
		c.say("done %d", r.ID)
	}
	all.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	if !b.object(t, "blob").Complete() {
		t.Error("not complete")
	}
}

func TestDaemonThatReadsNoAnswersIsDisconnected(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := b.bind(t)
	fill := b.miss(t, "blob", 0, 4096)
	for {
		if _, err := c.Write([]byte("nonsense")); err != nil {
			break
		}
	}
	if err := result(t, fill); !errors.Is(err, ondemand.ErrFlushed) {
		t.Error(err)
	}
	b.bind(t)
}
