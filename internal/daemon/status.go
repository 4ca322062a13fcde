package daemon

import (
	"cmp"
	"context"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Status tells what is served and how it goes.
func (i *Instance) Status(context.Context) (control.Status, error) {
	s, layers, leaving := i.statusNow()
	i.mu.Lock()
	s.Stopping = i.stopping
	i.mu.Unlock()
	s.Waits = i.waitsFor()
	for _, l := range leaving { // without mu, too
		*l.users = l.record.users(i.client.KeeperPID())
	}
	i.countFiles(s.Mounted, layers)
	return s, nil
}

// leaving is what is not mounted any more and still used, and where its users are told.
type leaving struct {
	record record
	users  *string
}

// statusNow is the status but for the numbers of files, the layers whose files are to
// be counted, and what is leaving.
func (i *Instance) statusNow() (s control.Status, layers map[ondemand.ObjectID]countedLayer, left []leaving) {
	t := i.table.Stats()
	s = control.Status{
		Version: i.s.Version, Root: i.root.Dir(),
		KeeperPID: i.client.KeeperPID(), WorkerPID: os.Getpid(),
		Started: i.started, Foreground: i.s.Foreground,
		Requests: control.Requests{
			Pending: t.Pending, Filled: t.Filled, Failed: t.Failed, Expired: t.Expired,
			Flushed: t.Flushed, Coalesced: t.Coalesced, P50: t.P50, P99: t.P99,
		},
		Bound: []control.Bound{},
	}
	deaths := i.client.Deaths()
	s.WorkerDeaths, s.LastDeath = deaths.Count, deaths.Last
	layers = make(map[ondemand.ObjectID]countedLayer)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.noticeLocked()
	left = i.filesStatusLocked(&s)
	left = append(left, i.mountsStatusLocked(&s, layers)...)
	for _, b := range i.bound {
		s.Bound = append(s.Bound, i.boundStatus(b))
	}
	slices.SortFunc(s.Bound, func(a, b control.Bound) int { return strings.Compare(a.Dir, b.Dir) })
	s.Unguarded = slices.Clone(i.unguarded)
	i.errMu.Lock()
	defer i.errMu.Unlock()
	s.Errors = slices.Clone(i.errors)
	return s, layers, left
}

// filesStatusLocked adds what is attached, and what cannot be served.
func (i *Instance) filesStatusLocked(s *control.Status) (left []leaving) {
	files := slices.SortedFunc(maps.Values(i.files), func(a, b *attachedFile) int {
		return strings.Compare(a.record.Path, b.record.Path)
	})
	// There are pointers into both.
	s.Attached, s.Broken = make([]control.Attached, 0, len(files)), make([]control.Broken, 0, len(files))
	for _, f := range files {
		users := new(string)
		if f.object != nil {
			s.Attached = append(s.Attached, i.attachedStatus(f))
			users = &s.Attached[len(s.Attached)-1].Users
		}
		if f.broken != nil {
			s.Broken = append(s.Broken, control.Broken{Path: f.record.Path, Kind: f.record.Kind, Reason: f.broken.Error(), Leaving: f.leaving})
			users = &s.Broken[len(s.Broken)-1].Users
		}
		if f.leaving {
			left = append(left, leaving{f.record, users})
		}
	}
	return left
}

// mountsStatusLocked adds what is mounted: of one directory what is there first.
func (i *Instance) mountsStatusLocked(s *control.Status, layers map[ondemand.ObjectID]countedLayer) (left []leaving) {
	mounts := slices.SortedFunc(maps.Values(i.mounts), func(a, b *mountedImage) int {
		return cmp.Or(strings.Compare(a.record.Path, b.record.Path), strings.Compare(a.record.Left, b.record.Left))
	})
	s.Mounted = make([]control.Mounted, 0, len(mounts))
	for _, m := range mounts {
		if m.metadata() == "" {
			continue
		}
		s.Mounted = append(s.Mounted, i.mountedStatus(m, layers))
		if m.leaving {
			left = append(left, leaving{m.record, &s.Mounted[len(s.Mounted)-1].Users})
		}
	}
	return left
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
