package fanotify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/sys"
)

// gives fails unless res holds the right bytes of r.
func gives(t testing.TB, res ondemandtest.Result, o *ondemandtest.Object, r ondemand.Range) {
	t.Helper()
	if res.Err != nil || res.Errno != 0 || !bytes.Equal(res.Data, ondemandtest.Bytes(o.Seed, r)) {
		t.Fatalf("read %v: %d bytes, errno %v, error %v, or wrong bytes", r, len(res.Data), res.Errno, res.Err)
	}
}

// denies fails unless the read has failed with want.
func denies(t testing.TB, res ondemandtest.Result, want syscall.Errno) {
	t.Helper()
	if res.Err != nil || res.Errno != want {
		t.Fatalf("%d bytes, errno %v, error %v; want errno %v", len(res.Data), res.Errno, res.Err, want)
	}
}

// events reads n events, which nobody answers yet.
func (in *instance) events(t testing.TB, n int) (each [][]byte) {
	t.Helper()
	for len(each) < n {
		if _, err := sys.WaitReadable(in.group, 60000); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, sys.FanotifyEventSize)
		got, err := sys.Read(in.group, buf)
		if err != nil {
			t.Fatal(err)
		}
		each = append(each, buf[:got])
	}
	return each
}

func TestMalformedEventInABatchIsDeniedAlone(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}), o)
	reader := ondemandtest.StartReader(t)
	var batch []byte
	var results []<-chan ondemandtest.Result
	for i := range int64(3) {
		results = append(results, reader.Start(o.Path, i<<16, 4096))
		ev := in.events(t, 1)[0]
		if i == 1 {
			binary.NativeEndian.PutUint16(ev[6:], 10) // metadata_len
		}
		batch = append(batch, ev...)
	}
	if err := in.fe.batch(batch); err != nil {
		t.Fatal(err)
	}
	gives(t, <-results[0], o, ondemand.Range{Off: 0, Len: 4096})
	denies(t, <-results[1], syscall.EIO)
	gives(t, <-results[2], o, ondemand.Range{Off: 2 << 16, Len: 4096})
	if err := <-in.errs; !errors.Is(err, sys.ErrMalformedEvent) {
		t.Errorf("reported %v", err)
	}
}

// What follows an event of unknown length cannot be found any more: the front end
// ends, and the next one denies it.
func TestEventsBehindAnUnknownLengthAreDeniedByTheNextProcess(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}), o)
	reader := ondemandtest.StartReader(t)
	first, second := reader.Start(o.Path, 0, 4096), reader.Start(o.Path, 1<<16, 4096)
	evs := in.events(t, 2)
	lost, _, err := sys.ParseFanotifyEvent(evs[1])
	if err != nil {
		t.Fatal(err)
	}
	binary.NativeEndian.PutUint32(evs[0], 10) // event_len
	copy(in.flight.buffer(), append(evs[0], evs[1]...))
	if err := in.fe.batch(in.flight.buffer()[:2*sys.FanotifyEventSize]); !errors.Is(err, sys.ErrMalformedEvent) {
		t.Fatalf("batch: %v", err)
	}
	<-in.errs
	if _, err := Occupy(in.group, in.flight, nil); err != nil {
		t.Fatal(err)
	}
	denies(t, <-first, syscall.EIO)
	denies(t, <-second, syscall.EIO)
	if err := sys.NewFD(lost.FD).Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEventWithoutARangeFillsTheWholeObject(t *testing.T) {
	o := objects(t, 1, 100000)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}), o)
	result := ondemandtest.StartReader(t).Start(o.Path, 0, 10)
	ev := in.events(t, 1)[0][:24]
	binary.NativeEndian.PutUint32(ev, 24)
	if err := in.fe.batch(ev); err != nil {
		t.Fatal(err)
	}
	gives(t, <-result, o, ondemand.Range{Len: 10})
	if !o.Complete() {
		t.Error("not all was filled")
	}
}

func TestEventWithoutADescriptorIsReported(t *testing.T) {
	in := attach(t, prepare(t, Options{Table: tableOf()}))
	ev := make([]byte, 24)
	binary.NativeEndian.PutUint32(ev, 24)
	ev[4] = 3
	binary.NativeEndian.PutUint16(ev[6:], 24)
	binary.NativeEndian.PutUint64(ev[8:], sys.FanPreAccess)
	missing := -int32(syscall.EMFILE)
	binary.NativeEndian.PutUint32(ev[16:], uint32(missing))
	if err := in.fe.batch(ev); err != nil {
		t.Fatal(err)
	}
	if err := <-in.errs; !errors.Is(err, syscall.EMFILE) {
		t.Errorf("reported %v", err)
	}
	binary.NativeEndian.PutUint64(ev[8:], sys.FanQOverflow)
	if err := in.fe.batch(ev); err != nil {
		t.Fatal(err)
	}
	if err := <-in.errs; !strings.Contains(err.Error(), "dropped") {
		t.Errorf("reported %v", err)
	}
}

func TestTruncateAsksForNothing(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	in := attach(t, prepare(t, Options{Table: newTable(nil)}).serve(), o)
	if res := ondemandtest.StartReader(t).Truncate(o.Path, 1<<20); res.Err != nil || res.Errno != 0 {
		t.Fatalf("truncate: %+v", res)
	}
	if st, ok := in.fe.StatsOf(o.ID()); !ok || st.Hits != 1 || st.Misses != 0 {
		t.Errorf("counters %+v", st)
	}
}

func TestReadAcrossTheEnd(t *testing.T) {
	o := objects(t, 1, 4096*3+100)[0]
	attach(t, prepare(t, Options{Table: tableOf(o)}).serve(), o)
	r := ondemandtest.StartReader(t)
	gives(t, r.Read(o.Path, 4096*3, 4096*5), o, ondemand.Range{Off: 4096 * 3, Len: 100})
	for _, off := range []int64{4096*3 + 100, 1 << 30} {
		if res := r.Read(o.Path, off, 4096); res.Err != nil || res.Errno != 0 || len(res.Data) != 0 {
			t.Errorf("read behind the end, at %d: %+v", off, res)
		}
	}
	if o.Bytes() != 100 {
		t.Errorf("%d bytes were filled", o.Bytes())
	}
}

// lateWriter fills through descriptors that it opens after the mark: each write is
// an event of this process.
func lateWriter(o *ondemandtest.Object) ondemandtest.FillFunc {
	return func(_ context.Context, _ ondemand.ObjectID, r ondemand.Range) error {
		f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(ondemandtest.Bytes(o.Seed, r), r.Off); err != nil {
			return errors.Join(err, f.Close())
		}
		o.Set(r)
		return f.Close()
	}
}

func TestOwnWritesAreLetThrough(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	attach(t, prepare(t, Options{Table: newTable(lateWriter(o))}).serve(), o)
	r := ondemand.Range{Off: 12345, Len: 500000}
	gives(t, ondemandtest.StartReader(t).Read(o.Path, r.Off, int(r.Len)), o, r)
}

func TestFewDescriptorsManyReaders(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	attach(t, prepare(t, Options{Table: tableOf(o), Descriptors: PerObject + 4}).serve(), o)
	reader := ondemandtest.StartReader(t)
	var results []<-chan ondemandtest.Result
	for i := range int64(100) {
		results = append(results, reader.Start(o.Path, i*8192, 4096))
	}
	for i, c := range results {
		gives(t, <-c, o, ondemand.Range{Off: int64(i) * 8192, Len: 4096})
	}
}

// The fills of the reads that have all descriptors wait for events of their own.
func TestStalledFillsAreReadPast(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	attach(t, prepare(t, Options{Table: newTable(lateWriter(o)), Descriptors: PerObject + 2}).serve(), o)
	reader := ondemandtest.StartReader(t)
	var results []<-chan ondemandtest.Result
	for i := range int64(8) {
		results = append(results, reader.Start(o.Path, i<<16, 4096))
	}
	right := 0
	for i, c := range results {
		if res := <-c; res.Errno == syscall.EAGAIN {
			continue
		} else {
			gives(t, res, o, ondemand.Range{Off: int64(i) << 16, Len: 4096})
			right++
		}
	}
	if right < 2 {
		t.Errorf("%d reads were answered with data", right)
	}
	gives(t, reader.Read(o.Path, 9<<16, 4096), o, ondemand.Range{Off: 9 << 16, Len: 4096})
}

func TestReadOnlyBindMount(t *testing.T) {
	o := objects(t, 1, 1<<20)[0]
	attach(t, prepare(t, Options{Table: tableOf(o)}).serve(), o)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := sys.OpenPath(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sys.BindReadOnly(source, target), source.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Unmount(target, false); err != nil {
			t.Error(err)
		}
	})
	reader := ondemandtest.StartReader(t)
	r := ondemand.Range{Off: 70000, Len: 70000}
	gives(t, reader.Read(target, r.Off, int(r.Len)), o, r)
	gives(t, reader.Mmap(target, 0, 4096), o, ondemand.Range{Len: 4096})
	if res := reader.Truncate(target, 0); !strings.Contains(res.Err.Error(), syscall.EROFS.Error()) {
		t.Errorf("truncate: %+v", res)
	}
}

func TestCompleteObjectIsUnmarked(t *testing.T) {
	o := objects(t, 1, 1<<18)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}).serve(), o)
	reader := ondemandtest.StartReader(t)
	stats := func() Stats {
		st, ok := in.fe.StatsOf(o.ID())
		if !ok {
			t.Fatal("not attached")
		}
		return st
	}
	whole := ondemand.Range{Len: 1 << 18}
	o.Incomplete.Store(true)
	for range 3 {
		gives(t, reader.Read(o.Path, 0, 1<<18), o, whole)
	}
	if st := stats(); !st.Marked || st.Hits < 2 {
		t.Fatalf("an object that does not call itself complete: %+v", st)
	}
	o.Incomplete.Store(false)
	gives(t, reader.Read(o.Path, 0, 1<<18), o, whole)
	until(t, "the mark is removed", func() bool { return !stats().Marked })
	before := stats()
	gives(t, reader.Read(o.Path, 0, 1<<18), o, whole)
	if after := stats(); after != before {
		t.Errorf("reads of an unmarked file were seen: %+v, then %+v", before, after)
	}
}

func TestSettle(t *testing.T) {
	o := objects(t, 1, 1<<16)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}).serve(), o)
	for _, want := range []bool{true, false} {
		if err := in.fe.Settle(o.ID()); err != nil {
			t.Fatal(err)
		}
		if st, _ := in.fe.StatsOf(o.ID()); st.Marked != want {
			t.Errorf("marked: %v", st.Marked)
		}
		if err := o.Write(ondemand.Range{Len: 1 << 16}); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that died between filling the last block and unmarking left the mark.
func TestMarkOfACompleteObjectIsRemovedAtAttach(t *testing.T) {
	o := objects(t, 1, 1<<16)[0]
	in := prepare(t, Options{Table: tableOf(o)})
	file, err := sys.OpenPath(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sys.FanotifyMark(in.group, file), file.Close(), o.Write(ondemand.Range{Len: 1 << 16})); err != nil {
		t.Fatal(err)
	}
	attach(t, in, o) // and not served: a read would sleep
	gives(t, ondemandtest.StartReader(t).Read(o.Path, 0, 1<<16), o, ondemand.Range{Len: 1 << 16})
}

func TestFileThatIsNotAttachedIsDenied(t *testing.T) {
	o := objects(t, 1, 1<<16)[0]
	in := attach(t, prepare(t, Options{Table: tableOf(o)}).serve())
	file, err := sys.OpenPath(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sys.FanotifyMark(in.group, file), file.Close()); err != nil {
		t.Fatal(err)
	}
	denies(t, ondemandtest.StartReader(t).Read(o.Path, 0, 4096), syscall.EIO)
}

func TestAttachErrors(t *testing.T) {
	objs := objects(t, 2, 1<<16)
	in := attach(t, prepare(t, Options{Table: tableOf(objs...)}), objs[0])
	if err := in.fe.Attach(objs[1], objs[0].Path, nobody); !errors.Is(err, ErrAttached) {
		t.Errorf("one file twice: %v", err)
	}
	if err := in.fe.Attach(objs[1], objs[1].Path+"-absent", nobody); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if err := in.fe.Attach(objs[1], "/proc/self/maps", nobody); err == nil {
		t.Error("a file of proc was attached")
	}
	if err := in.fe.Detach(objs[1].ID()); !errors.Is(err, ErrNotAttached) {
		t.Errorf("detach of what is not attached: %v", err)
	}
	if _, ok := in.fe.StatsOf(objs[1].ID()); ok {
		t.Error("counters of what is not attached")
	}
}

func TestExemptProcessIsLetThrough(t *testing.T) {
	o := objects(t, 1, 1<<16)[0]
	in := attach(t, prepare(t, Options{Table: newTable(nil)}).serve())
	exempt := ondemandtest.StartReader(t)
	if err := in.fe.Attach(o, o.Path, func(pid int) bool { return pid == exempt.PID() }); err != nil {
		t.Fatal(err)
	}
	if res := exempt.Read(o.Path, 0, 4096); res.Errno != 0 || !bytes.Equal(res.Data, make([]byte, 4096)) {
		t.Errorf("%+v", res)
	}
}
