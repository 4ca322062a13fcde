package fanotify_test

import (
	"context"
	"errors"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/fanotify"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/internal/sys"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	leaktest.Main(m)
}

// instance is a front end with a group and a table of its own.
type instance struct {
	fe     *fanotify.FrontEnd
	table  *ondemand.Table
	group  *sys.FD
	flight *fanotify.Inflight
	stop   context.CancelFunc
	served chan error
	errs   chan error
}

func open(t *testing.T, table *ondemand.Table, _ string) ondemandtest.Instance {
	return start(t, table)
}

func start(t testing.TB, table *ondemand.Table) *instance {
	t.Helper()
	group, err := sys.FanotifyInit()
	if err != nil {
		t.Fatal(err)
	}
	flight, err := fanotify.NewInflight(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{table: table, group: group, flight: flight, served: make(chan error, 1), errs: make(chan error, 1000)}
	in.fe, err = fanotify.New(fanotify.Options{
		Group: group, Inflight: flight, Table: table, Descriptors: 1000,
		OnError: func(err error) { in.errs <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in.stop = cancel
	go func() { in.served <- in.fe.Serve(ctx) }()
	return in
}

func (in *instance) Attach(o *ondemandtest.Object) (string, error) {
	return o.Path, in.fe.Attach(o, o.Path, nil)
}

func (in *instance) Detach(id ondemand.ObjectID) error { return in.fe.Detach(id) }

func (in *instance) Close() error {
	err := in.table.Close()
	in.stop()
	err = errors.Join(err, <-in.served)
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
