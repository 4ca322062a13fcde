package fanotify

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	beVictim()
	leaktest.Main(m)
}

// instance is a front end with a group and a table of its own.
type instance struct {
	fe     *FrontEnd
	table  *ondemand.Table
	group  *sys.FD
	flight *Inflight
	stop   context.CancelFunc
	served chan error
	errs   chan error
}

const slots = 1 << 12

// prepare makes an instance that does not serve yet. o may name some of its parts.
func prepare(t testing.TB, o Options) *instance {
	t.Helper()
	var err error
	if o.Group == nil {
		if o.Group, err = sys.FanotifyInit(); err != nil {
			t.Fatal(err)
		}
	}
	if o.Inflight == nil {
		if o.Inflight, err = NewInflight(slots); err != nil {
			t.Fatal(err)
		}
	}
	if o.Descriptors == 0 {
		o.Descriptors = 1000
	}
	in := &instance{table: o.Table, group: o.Group, flight: o.Inflight, served: make(chan error, 1), errs: make(chan error, 1000)}
	o.OnError = func(err error) { in.errs <- err }
	in.fe = New(o)
	return in
}

func (in *instance) serve() *instance {
	ctx, cancel := context.WithCancel(context.Background())
	in.stop = cancel
	go func() { in.served <- in.fe.Serve(ctx) }()
	return in
}

func open(t *testing.T, table *ondemand.Table, _ string) ondemandtest.Instance {
	return prepare(t, Options{Table: table}).serve()
}

func (in *instance) Attach(o *ondemandtest.Object) (string, error) {
	return o.Path, in.fe.Attach(o, o.Path, nobody)
}

func (in *instance) Detach(id ondemand.ObjectID) error { return in.fe.Detach(id) }

func (in *instance) Close() error {
	err := in.table.Close()
	if in.stop != nil {
		in.stop()
		err = errors.Join(err, <-in.served)
	}
	in.fe.Drain()
	err = errors.Join(err, in.fe.Close(), in.group.Close(), in.flight.Close())
	select {
	case e := <-in.errs:
		err = errors.Join(err, e)
	default:
	}
	return err
}

func dir(t testing.TB) string { return t.TempDir() }

func TestConformance(t *testing.T) { ondemandtest.Run(t, dir, open) }

// fills is a Filler of several test objects.
type fills map[ondemand.ObjectID]*ondemandtest.Object

func (f fills) Fill(_ context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	return f[id].Write(r)
}

// tableOf makes a table that fills objs with their bytes.
func tableOf(objs ...*ondemandtest.Object) *ondemand.Table {
	f := make(fills)
	for _, o := range objs {
		f[o.ID()] = o
	}
	return newTable(f)
}

func newTable(f ondemand.Filler) *ondemand.Table {
	return ondemand.NewTable(f, ondemand.TableOptions{Deadline: 5 * time.Minute})
}

// attach attaches objs to in, which ends with the test.
func attach(t testing.TB, in *instance, objs ...*ondemandtest.Object) *instance {
	t.Helper()
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, o := range objs {
		if _, err := in.Attach(o); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// objects makes n test objects of size bytes.
func objects(t testing.TB, n int, size int64) (objs []*ondemandtest.Object) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		objs = append(objs, ondemandtest.NewObject(t, dir, int64(i)+1, size))
	}
	return objs
}

// until waits for what another process brings about and raises no event here.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
