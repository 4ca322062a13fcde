package fanotify

import (
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

// asking is a table that no data comes to, and that asks often whether readers live.
func asking() *ondemand.Table {
	return ondemand.NewTable(sleeps{}, ondemand.TableOptions{Deadline: time.Hour, LookEvery: 5 * time.Millisecond})
}

// onlyOneIsLeft waits until the killed reader's event has been let go of, and fails
// unless that of the living one waits on.
func (in *instance) onlyOneIsLeft(t *testing.T) {
	t.Helper()
	until(t, "the killed reader's request ends", func() bool { return in.table.Stats().Gone == 1 })
	until(t, "its event is let go of", func() bool { return in.fe.open.Load() == 1 })
	if n := len(in.flight.outstanding()); n != 1 {
		t.Errorf("%d events are in flight", n)
	}
	if s := in.table.Stats(); s.Pending != 1 || s.Expired != 0 {
		t.Errorf("counters %+v", s)
	}
}

func TestKilledReaderHoldsNothingUp(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	in := attach(t, prepare(t, Options{Table: asking()}), objs...).serve()
	living, victim := ondemandtest.StartReader(t), ondemandtest.StartReader(t)
	living.Start(objs[0].Path, 0, 4096)
	victim.Start(objs[0].Path, 65536, 4096)
	until(t, "both sleep", func() bool { return in.table.Stats().Pending == 2 })
	victim.Kill()
	in.onlyOneIsLeft(t)
}

// The next process knows whom it wakes too.
func TestReaderThatWasKilledWhileNobodyServed(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	in := attach(t, prepare(t, Options{Table: asking()}))
	v := startVictim(t, in, "serve", objs)
	living, killed := ondemandtest.StartReader(t), ondemandtest.StartReader(t)
	living.Start(objs[0].Path, 0, 4096)
	killed.Start(objs[0].Path, 65536, 4096)
	until(t, "both sleep", func() bool { return in.entered() == 2 })
	v.kill()
	killed.Kill()
	in.adopt(t, objs)
	in.onlyOneIsLeft(t)
}
