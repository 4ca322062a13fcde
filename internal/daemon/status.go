package daemon

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Status tells what is served and how it goes.
func (i *Instance) Status(context.Context) (control.Status, error) {
	s, layers := i.statusNow()
	i.mu.Lock()
	waits := i.waits
	s.Stopping = i.stopping
	i.mu.Unlock()
	for _, w := range waits { // without mu: it looks into all processes
		s.Waits = append(s.Waits, w.path+": "+w.users())
	}
	i.countFiles(s.Mounted, layers)
	return s, nil
}

// statusNow is the status but for the numbers of files, and the layers whose files
// are to be counted.
func (i *Instance) statusNow() (control.Status, map[ondemand.ObjectID]countedLayer) {
	t := i.table.Stats()
	s := control.Status{
		Version: i.s.Version, Root: i.root.Dir(),
		KeeperPID: i.client.KeeperPID(), WorkerPID: os.Getpid(),
		Started: i.started, Foreground: i.s.Foreground,
		Requests: control.Requests{
			Pending: t.Pending, Filled: t.Filled, Failed: t.Failed, Expired: t.Expired,
			Flushed: t.Flushed, Coalesced: t.Coalesced, P50: t.P50, P99: t.P99,
		},
		Attached: []control.Attached{}, Bound: []control.Bound{}, Mounted: []control.Mounted{},
	}
	deaths := i.client.Deaths()
	s.WorkerDeaths, s.LastDeath = deaths.Count, deaths.Last
	layers := make(map[ondemand.ObjectID]countedLayer)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.noticeLocked()
	for _, f := range i.files {
		if f.object != nil {
			s.Attached = append(s.Attached, i.attachedStatus(f))
		}
		if f.broken != nil {
			s.Broken = append(s.Broken, control.Broken{Path: f.record.Path, Kind: f.record.Kind, Reason: f.broken.Error()})
		}
	}
	slices.SortFunc(s.Attached, func(a, b control.Attached) int { return strings.Compare(a.File, b.File) })
	slices.SortFunc(s.Broken, func(a, b control.Broken) int { return strings.Compare(a.Path, b.Path) })
	for _, m := range i.mounts {
		if m.metadata() != "" {
			s.Mounted = append(s.Mounted, i.mountedStatus(m, layers))
		}
	}
	slices.SortFunc(s.Mounted, func(a, b control.Mounted) int {
		if a.Dir == b.Dir && a.Leaving != b.Leaving { // what is there first
			if a.Leaving {
				return 1
			}
			return -1
		}
		return strings.Compare(a.Dir, b.Dir)
	})
	for _, b := range i.bound {
		s.Bound = append(s.Bound, i.boundStatus(b))
	}
	slices.SortFunc(s.Bound, func(a, b control.Bound) int { return strings.Compare(a.Dir, b.Dir) })
	s.Unguarded = slices.Clone(i.unguarded)
	i.errMu.Lock()
	defer i.errMu.Unlock()
	s.Errors = slices.Clone(i.errors)
	return s, layers
}

func (i *Instance) attachedStatus(f *attachedFile) control.Attached {
	o := f.object
	id, meta := o.cached.ID(), o.cached.Meta()
	st, fetched := i.fetcher.Stats(id), control.Attached{
		File: f.record.Path, Object: string(id), Source: o.origin.redacted(), Ranges: !o.origin.Sequential,
		Size: o.cached.Size(), Present: o.cached.Present(), Complete: o.served.Complete(),
		Leaving: f.leaving,
	}
	switch {
	case meta.Verified:
		fetched.Verified = "yes"
	case meta.SHA256 != "":
		fetched.Verified = "pending"
	default:
		fetched.Verified = "unverifiable"
	}
	asked := statsOf(o.asked)
	fetched.Requests, fetched.Fetched = uint64(asked.Requests), asked.Bytes
	fetched.SourceP50, fetched.SourceP99 = asked.FirstByte.Quantile(0.50), asked.FirstByte.Quantile(0.99)
	if st.Err != nil {
		fetched.Error = st.Err.Error()
	}
	front, _ := i.front.StatsOf(id)
	fetched.Hits, fetched.Misses = front.Hits, front.Misses
	return fetched
}

func (i *Instance) boundStatus(b *boundDir) control.Bound {
	st := b.server.Status()
	out := control.Bound{
		Dir: b.record.Path, Devnode: b.record.Devnode,
		Files: len(b.dir.Objects()), DaemonPID: st.PID, Pending: st.Pending,
	}
	for _, o := range b.dir.Objects() {
		out.Size += o.Size()
		out.Present += o.Present()
		front, _ := i.front.StatsOf(o.ID())
		out.Hits += front.Hits
		out.Misses += front.Misses
	}
	return out
}
