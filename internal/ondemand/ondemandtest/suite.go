package ondemandtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Instance is a front end under test with its table.
type Instance interface {
	// Attach serves o and returns the path where readers find it.
	Attach(o *Object) (path string, err error)
	// Detach takes it out of service.
	Detach(id ondemand.ObjectID) error
	// Close ends the instance; readers that sleep get an error.
	Close() error
}

// Open starts a front end whose misses go to table. dir is where object files
// lie. The suite closes the instance.
type Open func(t *testing.T, table *ondemand.Table, dir string) Instance

// Suite holds what the cases share.
type suite struct {
	*testing.T
	open   Open
	dir    func(testing.TB) string
	reader *Reader
}

// long is a deadline that no case reaches.
const long = 5 * time.Minute

// Run checks the front end that open starts. dir gives a directory on a
// filesystem that suits it.
func Run(t *testing.T, dir func(testing.TB) string, open Open) {
	cases := []struct {
		name string
		run  func(*suite)
	}{
		{"MissIsFilled", missIsFilled},
		{"PresentRangeIsNotFilled", presentIsNotFilled},
		{"OverlappingMissesShareAFill", missesShare},
		{"WokenBeforeTheFillEnds", wokenEarly},
		{"FillErrorReachesTheReader", fillErrors},
		{"PanicDenies", panicDenies},
		{"DoneWithoutDataDenies", doneWithoutData},
		{"DeadlineDenies", deadlineDenies},
		{"DetachEndsPendingReads", detachEnds},
		{"CloseFlushesPendingReads", closeFlushes},
		{"TailAndBeyond", tail},
		{"KilledReaderLeavesNothing", killedReader},
		{"MappedFile", mapped},
		{"ModelOfRandomReads", model},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.run(&suite{T: t, open: open, dir: dir, reader: StartReader(t)})
		})
	}
}

// serve opens an instance with one object of size bytes filled by fill.
func (s *suite) serve(size int64, deadline time.Duration, fill func(*Object, *ondemand.Table) FillFunc) (*Object, *ondemand.Table, Instance, string) {
	s.Helper()
	dir := s.dir(s)
	o := NewObject(s, dir, 1, size)
	var table *ondemand.Table
	table = ondemand.NewTable(FillFunc(func(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
		return fill(o, table)(ctx, id, r)
	}), ondemand.TableOptions{Deadline: deadline})
	in := s.open(s.T, table, dir)
	var once sync.Once
	s.Cleanup(func() {
		once.Do(func() {
			if err := in.Close(); err != nil {
				s.Error(err)
			}
		})
	})
	path, err := in.Attach(o)
	if err != nil {
		s.Fatal(err)
	}
	return o, table, in, path
}

// right fails the test unless res holds the bytes of r.
func (s *suite) right(res Result, o *Object, r ondemand.Range) {
	s.Helper()
	if res.Err != nil || res.Errno != 0 {
		s.Fatalf("read %v: %v %v", r, res.Errno, res.Err)
	}
	r = r.Intersect(ondemand.Range{Len: o.Size()})
	if !bytes.Equal(res.Data, Bytes(o.Seed, r)) {
		s.Fatalf("read %v: wrong bytes", r)
	}
}

func (s *suite) denied(res Result, want syscall.Errno) {
	s.Helper()
	if res.Err != nil || res.Errno != want || len(res.Data) != 0 {
		s.Fatalf("got %d bytes, errno %v, error %v; want errno %v", len(res.Data), res.Errno, res.Err, want)
	}
}

// writes is a fill that simply writes what it is asked for.
func writes(o *Object, _ *ondemand.Table) FillFunc {
	return func(_ context.Context, _ ondemand.ObjectID, r ondemand.Range) error { return o.Write(r) }
}

func missIsFilled(s *suite) {
	o, table, _, path := s.serve(1<<20, long, writes)
	for _, r := range []ondemand.Range{{Off: 5000, Len: 10}, {Off: 0, Len: 1}, {Off: 4096, Len: 100000}, {Off: 0, Len: 1 << 20}} {
		s.right(s.reader.Read(path, r.Off, int(r.Len)), o, r)
	}
	if st := table.Stats(); st.Filled == 0 || st.Pending != 0 {
		s.Errorf("stats %+v", st)
	}
}

func presentIsNotFilled(s *suite) {
	var asked atomic.Int64
	o, _, _, path := s.serve(1<<20, long, func(*Object, *ondemand.Table) FillFunc {
		return func(context.Context, ondemand.ObjectID, ondemand.Range) error {
			asked.Add(1)
			return errors.New("not to be asked")
		}
	})
	r := ondemand.Range{Off: 8192, Len: 16384}
	if err := o.Write(r); err != nil {
		s.Fatal(err)
	}
	s.right(s.reader.Read(path, r.Off, int(r.Len)), o, r)
	if asked.Load() != 0 {
		s.Error("a present range was filled")
	}
}

// gate is a fill that waits to be let go on.
type gate struct {
	entered chan ondemand.Range
	release chan struct{}
}

func newGate() *gate {
	return &gate{make(chan ondemand.Range, 1000), make(chan struct{})}
}

func (g *gate) fill(o *Object, _ *ondemand.Table) FillFunc {
	return func(ctx context.Context, _ ondemand.ObjectID, r ondemand.Range) error {
		g.entered <- r
		select {
		case <-g.release:
			return o.Write(r)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func missesShare(s *suite) {
	g := newGate()
	o, table, _, path := s.serve(1<<20, long, g.fill)
	r := ondemand.Range{Off: 65536, Len: 4096}
	first := s.reader.Start(path, r.Off, int(r.Len))
	<-g.entered
	var rest []<-chan Result
	for range 15 {
		rest = append(rest, s.reader.Start(path, r.Off, int(r.Len)))
	}
	// Readers of one page may be one request: those of a filesystem whose pages the
	// kernel fills.
	s.until(func() bool { return s.reader.Asleep() == 16 })
	close(g.release)
	for _, c := range append(rest, first) {
		s.right(<-c, o, r)
	}
	if st := table.Stats(); st.Fills != 1 || st.Coalesced+1 != st.Filled {
		s.Errorf("want 1 fill that all requests share: %+v", st)
	}
}

// until waits for a state that another process brings about and that raises no
// event here.
func (s *suite) until(ok func() bool) {
	s.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			s.Fatal("the state did not come")
		}
		<-time.After(time.Millisecond)
	}
}

func wokenEarly(s *suite) {
	g := newGate()
	o, _, _, path := s.serve(1<<20, long, func(o *Object, table *ondemand.Table) FillFunc {
		return func(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
			if err := o.Write(r); err != nil {
				return err
			}
			table.Present(id, r)
			return g.fill(o, table)(ctx, id, r)
		}
	})
	// Not at the beginning, where the kernel reads ahead.
	r := ondemand.Range{Off: 1 << 19, Len: 4096}
	s.right(s.reader.Read(path, r.Off, int(r.Len)), o, r) // the fill still waits at the gate
	<-g.entered
	close(g.release)
}

func fillErrors(s *suite) {
	var fail atomic.Pointer[error]
	_, _, _, path := s.serve(1<<20, long, func(*Object, *ondemand.Table) FillFunc {
		return func(context.Context, ondemand.ObjectID, ondemand.Range) error { return *fail.Load() }
	})
	for i, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{errors.New("anything"), syscall.EIO},
		{fmt.Errorf("write: %w", syscall.ENOSPC), syscall.ENOSPC},
		{fmt.Errorf("write: %w", syscall.EDQUOT), syscall.EDQUOT},
		{ondemand.ErrDenied, syscall.EPERM},
		{ondemand.ErrOverloaded, syscall.EAGAIN},
		{ondemand.ErrDetached, syscall.EBUSY},
		{syscall.ENOENT, syscall.EIO},
	} {
		fail.Store(&c.err)
		s.denied(s.reader.Read(path, int64(i)*65536, 4096), c.want)
	}
}

func panicDenies(s *suite) {
	_, table, _, path := s.serve(1<<20, long, func(*Object, *ondemand.Table) FillFunc {
		return func(context.Context, ondemand.ObjectID, ondemand.Range) error { panic("in a fill") }
	})
	s.denied(s.reader.Read(path, 0, 4096), syscall.EIO)
	if st := table.Stats(); st.Pending != 0 || st.Failed == 0 {
		s.Errorf("stats %+v", st)
	}
}

func doneWithoutData(s *suite) {
	_, _, _, path := s.serve(1<<20, long, func(*Object, *ondemand.Table) FillFunc {
		return func(context.Context, ondemand.ObjectID, ondemand.Range) error { return nil }
	})
	s.denied(s.reader.Read(path, 0, 4096), syscall.EIO)
}

func deadlineDenies(s *suite) {
	_, table, _, path := s.serve(1<<20, 30*time.Millisecond, newGate().fill)
	s.denied(s.reader.Read(path, 0, 4096), syscall.EIO)
	if st := table.Stats(); st.Expired == 0 {
		s.Errorf("stats %+v", st)
	}
}

func detachEnds(s *suite) {
	g := newGate()
	o, _, in, path := s.serve(1<<20, long, g.fill)
	c := s.reader.Start(path, 0, 4096)
	<-g.entered
	if err := in.Detach(o.ID()); err != nil {
		s.Fatal(err)
	}
	s.denied(<-c, syscall.EBUSY)
}

func closeFlushes(s *suite) {
	g := newGate()
	_, table, _, path := s.serve(1<<20, long, g.fill)
	c := s.reader.Start(path, 0, 4096)
	<-g.entered
	if err := table.Close(); err != nil {
		s.Fatal(err)
	}
	s.denied(<-c, syscall.EIO)
	s.denied(s.reader.Read(path, 65536, 4096), syscall.EIO)
}

func tail(s *suite) {
	o, _, _, path := s.serve(10000, long, writes)
	s.right(s.reader.Read(path, 9000, 5000), o, ondemand.Range{Off: 9000, Len: 1000})
	s.right(s.reader.Read(path, 0, 20000), o, ondemand.Range{Len: 10000})
	if res := s.reader.Read(path, 10000, 10); res.Errno != 0 || len(res.Data) != 0 {
		s.Errorf("read at the end: %+v", res)
	}
	if !o.Complete() {
		s.Error("the object is not complete")
	}
}

func killedReader(s *suite) {
	g := newGate()
	o, table, _, path := s.serve(1<<20, long, g.fill)
	victim := StartReader(s)
	victim.Start(path, 0, 4096)
	<-g.entered
	victim.Kill()
	close(g.release)
	s.right(s.reader.Read(path, 0, 8192), o, ondemand.Range{Len: 8192})
	s.until(func() bool { return table.Stats().Pending == 0 })
}

func mapped(s *suite) {
	o, _, _, path := s.serve(1<<20, long, writes)
	s.right(s.reader.Mmap(path, 65536, 65536), o, ondemand.Range{Off: 65536, Len: 65536})
}

// model lets 16 readers read at random while fills fail at random, and blocks
// become present by themselves: right bytes or the errno of the fault.
func model(s *suite) {
	seed := rand.Uint64()
	s.Logf("seed %d", seed)
	var n atomic.Uint64
	o, _, _, path := s.serve(8<<20-777, long, func(o *Object, table *ondemand.Table) FillFunc {
		return func(_ context.Context, id ondemand.ObjectID, r ondemand.Range) error {
			switch rng := rand.New(rand.NewPCG(seed, n.Add(1))); rng.IntN(4) {
			case 0:
				return syscall.ENOSPC
			case 1:
				ahead := ondemand.Range{Off: rng.Int64N(o.Size()), Len: 1 << 16}.Intersect(ondemand.Range{Len: o.Size()})
				if err := o.Write(ahead); err != nil {
					return err
				}
				table.Present(id, ahead)
			}
			return o.Write(r)
		}
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)+1000000))
			for range 100 {
				r := ondemand.Range{Off: rng.Int64N(o.Size()), Len: 1 + rng.Int64N(1<<16)}
				res := s.reader.Read(path, r.Off, int(r.Len))
				r = r.Intersect(ondemand.Range{Len: o.Size()})
				switch {
				case res.Err != nil:
					s.Errorf("read %v: %v", r, res.Err)
				case !bytes.Equal(res.Data, Bytes(o.Seed, r)[:len(res.Data)]):
					s.Errorf("read %v: wrong bytes", r)
				case res.Errno == 0 && int64(len(res.Data)) != r.Len, res.Errno != 0 && res.Errno != syscall.ENOSPC:
					s.Errorf("read %v: %d bytes, errno %v", r, len(res.Data), res.Errno)
				}
			}
		})
	}
	wg.Wait()
}
