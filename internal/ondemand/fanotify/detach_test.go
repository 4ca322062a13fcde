package fanotify

import (
	"context"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

// sleeps is a Filler that brings nothing.
type sleeps struct{}

func (sleeps) Fill(ctx context.Context, _ ondemand.ObjectID, _ ondemand.Range) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestDetachWithManyReadsInFlight(t *testing.T) {
	o := objects(t, 1, 1<<22)[0]
	in := attach(t, prepare(t, Options{Table: newTable(sleeps{})}).serve(), o)
	reader := ondemandtest.StartReader(t)
	var results []<-chan ondemandtest.Result
	for i := range int64(300) {
		results = append(results, reader.Start(o.Path, i*8192, 4096))
	}
	until(t, "all wait", func() bool { return in.table.Stats().Pending == 300 })
	if err := in.fe.Detach(o.ID()); err != nil {
		t.Fatal(err)
	}
	for _, c := range results {
		denies(t, <-c, syscall.EBUSY)
	}
	if _, err := in.Attach(o); err != nil {
		t.Errorf("attach again: %v", err)
	}
}

// pausing is an object that waits in Has: its read has been looked up and has not
// entered the table.
type pausing struct {
	*ondemandtest.Object
	entered, release chan struct{}
}

func (p *pausing) Has(r ondemand.Range) bool {
	close(p.entered)
	<-p.release
	return p.Object.Has(r)
}

func TestReadThatEntersTheTableBehindTheLastFlush(t *testing.T) {
	o := objects(t, 1, 1<<16)[0]
	p := &pausing{o, make(chan struct{}), make(chan struct{})}
	in := attach(t, prepare(t, Options{Table: newTable(sleeps{})}).serve())
	if err := in.fe.Attach(p, o.Path, nobody); err != nil {
		t.Fatal(err)
	}
	a := in.fe.find(o.ID())
	result := ondemandtest.StartReader(t).Start(o.Path, 0, 4096)
	<-p.entered
	detached := make(chan error, 1)
	go func() { detached <- in.fe.Detach(o.ID()) }()
	until(t, "Detach has flushed", func() bool { return a.detached.Load() })
	close(p.release)
	denies(t, <-result, syscall.EBUSY)
	if err := <-detached; err != nil {
		t.Fatal(err)
	}
}

// broken is an object that panics.
type broken struct{ *ondemandtest.Object }

func (broken) Has(ondemand.Range) bool { panic("in Has") }

type brokenLater struct{ *ondemandtest.Object }

func (brokenLater) Missing(ondemand.Range) []ondemand.Range { panic("in Missing") }

func TestPanickingObjectDenies(t *testing.T) {
	objs := objects(t, 3, 1<<16)
	in := attach(t, prepare(t, Options{Table: tableOf(objs...)}).serve(), objs[2])
	for i, o := range []ondemand.Object{broken{objs[0]}, brokenLater{objs[1]}} {
		if err := in.fe.Attach(o, objs[i].Path, nobody); err != nil {
			t.Fatal(err)
		}
	}
	reader := ondemandtest.StartReader(t)
	denies(t, reader.Read(objs[0].Path, 0, 4096), syscall.EIO)
	denies(t, reader.Read(objs[1].Path, 0, 4096), syscall.EIO)
	gives(t, reader.Read(objs[2].Path, 0, 4096), objs[2], ondemand.Range{Len: 4096})
}
