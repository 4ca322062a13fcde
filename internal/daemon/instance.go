package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/fileset"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/keeper"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/fanotify"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/trace"
	"github.com/lacunafs/lacuna/internal/sys"
)

// Instance is one worker with everything that it serves.
type Instance struct {
	s       Settings
	log     *slog.Logger
	client  *keeper.Client
	held    keeper.Held // what the keeper had for us at the start
	started time.Time

	group   *sys.FD
	flight  *fanotify.Inflight
	root    *cache.Root
	records records
	library *prepare.Library
	// manifests are prepared, as library has images.
	manifests *fileset.Library
	sources   *opener
	fetcher   *fetch.Fetcher
	table     *ondemand.Table
	front     *fanotify.FrontEnd
	fillers   sync.Map // ondemand.ObjectID -> ondemand.Filler, where it is not fetcher
	origins   sync.Map // ondemand.ObjectID -> origin
	told      sync.Map // ondemand.ObjectID -> time.Time: see readFailed
	parts     sync.Map // ondemand.ObjectID -> source.Blob, of devices of files

	probe features.Prober

	// holdMu guards pushed, and is never held with another lock wanted.
	holdMu sync.Mutex
	pushed map[string][]*sys.FD // by name in the keeper

	mu        sync.Mutex
	stopping  bool
	waits     []standing               // what a stop has last found in use
	files     map[string]*attachedFile // by path
	objects   map[ondemand.ObjectID]*servedObject
	bound     map[string]*boundDir // by directory
	mounts    map[string]*mountedImage
	covered   map[string]record // what was made to mount on and is mounted on elsewhere, by key
	unguarded []control.Unguarded

	counts fileCounts // with its lock held errMu may be taken, and no other

	loops map[string]bool // what checkLoops has reported; its caller's alone

	errMu  sync.Mutex // guards errors; never held with another lock wanted
	errors []string   // the last ones that no reader could be told of
}

// maxErrors is how many errors status remembers.
const maxErrors = 20

// servedObject is an object that is attached somewhere.
type servedObject struct {
	cached *cache.Object
	served *fetch.Object
	blob   source.Blob
	origin origin
	asked  source.Blob  // what is under blob and counts its requests
	layer  *servedLayer // of a layer's device: the images that it is read through
	files  int          // attached files that show it, or mounts
	// settling ends the reading of a layer's index; nil: it has none.
	settling func()
	// set and tally are of a device of files.
	set   *fileset.Set
	tally *trace.Tally
}

// attachedFile is a place where an object appears.
type attachedFile struct {
	record  record
	object  *servedObject // nil while it is being attached or detached, and where broken is set
	leaving bool          // its mount is gone, and somebody still reads it
	broken  error         // why it cannot be served; its record may be that of a bind or a mount
	half    *mountedImage // of a broken mount: the devices that are served; nil: none
}

// Fill finds who fills the object: the source that it was fetched from, or the
// external daemon of a bound directory. It implements ondemand.Filler.
func (i *Instance) Fill(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	if filler, ok := i.fillers.Load(id); ok {
		return filler.(ondemand.Filler).Fill(ctx, id, r) //nolint:errcheck,forcetypeassert // only Fillers are put in
	}
	err := i.fetcher.Fill(ctx, id, r)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ondemand.ErrDetached) && !errors.Is(err, ondemand.ErrFlushed) {
		i.readFailed(id, err)
	}
	return err
}

// tellAgain is how long the failures of one object's reads are not told of again:
// a reader only gets an errno, and while a source is away there are many.
const tellAgain = 10 * time.Second

// readFailed tells why a read got an error.
func (i *Instance) readFailed(id ondemand.ObjectID, err error) {
	now := time.Now()
	if last, ok := i.told.Swap(id, now); ok && now.Sub(last.(time.Time)) < tellAgain { //nolint:errcheck,forcetypeassert // only times are put in
		i.told.Store(id, last)
		return
	}
	i.fetchFailed(id, err)
}

// speaksFor is what of an object a failure of the range tells of, where it is read
// through an EROFS filesystem: all objects are but the files of bound directories.
func (i *Instance) speaksFor(id ondemand.ObjectID, failed ondemand.Range) ondemand.Range {
	if _, bound := i.fillers.Load(id); bound {
		return ondemand.Range{}
	}
	if blob, ok := i.parts.Load(id); ok {
		off, n := source.Part(blob.(source.Blob), failed.Off) //nolint:errcheck,forcetypeassert // only Blobs are put in
		return ondemand.Range{Off: off, Len: n}
	}
	return ondemand.Range{Len: math.MaxInt64}
}

// originOf is where the bytes of an object that is served come from.
func (i *Instance) originOf(id ondemand.ObjectID) (where origin, found bool) {
	value, found := i.origins.Load(id)
	if found {
		where = value.(origin) //nolint:errcheck,forcetypeassert // only origins are put in
	}
	return where, found
}

// nameOf is an object for people: its key, and what it is.
func (i *Instance) nameOf(id ondemand.ObjectID) string {
	where, found := i.originOf(id)
	if !found || where.Kind == originFiles {
		return id.Short()
	}
	return id.Short() + " (" + where.redacted() + ")"
}

// report keeps an error that no reader could be told of.
func (i *Instance) report(what string, err error) {
	i.log.Error(what, "err", err)
	i.note(fmt.Sprintf("%s %s: %v", time.Now().Format(time.RFC3339), what, err))
}

func (i *Instance) note(line string) {
	i.errMu.Lock()
	defer i.errMu.Unlock()
	i.errors = append(i.errors, line)
	if len(i.errors) > maxErrors {
		i.errors = i.errors[1:]
	}
}

// open makes the instance's parts, taking over what the keeper has held. After
// it nothing is served yet. After an error close frees what there is.
func (i *Instance) open(ctx context.Context) (legacy *fanotify.Legacy, err error) {
	// First of all: numbers of open events must not be given to anything else.
	if legacy, err = i.takeOver(); err != nil {
		return nil, err
	}
	if err := i.client.Watch(); err != nil {
		return nil, err
	}
	limit, err := sys.SetFileLimit(descriptors)
	if err != nil {
		return nil, err
	}
	if err := sys.SetTimerSlack(time.Microsecond); err != nil {
		i.log.Debug("reads that miss may take 0.1 ms longer", "err", err)
	}
	if err := i.openRoot(); err != nil {
		return nil, err
	}
	fresh := i.group == nil
	if fresh {
		if err := i.makeGroup(ctx); err != nil {
			return nil, err
		}
	}
	c := i.s.Config
	i.sources = newOpener(i.s, i.log)
	i.fetcher = fetch.New(fetch.Options{
		Memory: int64(c.Memory), Conns: c.ConnsPerHost,
		Group: func(id ondemand.ObjectID, _ source.Blob) string {
			where, _ := i.originOf(id)
			return where.host()
		},
		Present: func(id ondemand.ObjectID, r ondemand.Range) { i.table.Present(id, r) },
		OnError: i.fetchFailed,
	})
	i.table = ondemand.NewTable(i, ondemand.TableOptions{Deadline: time.Duration(c.Deadline), Again: i.speaksFor})
	i.front = fanotify.New(fanotify.Options{
		Group: i.group, Inflight: i.flight, Table: i.table,
		Descriptors: int(limit) - min(reserved, int(limit)/2),
		OnError:     func(err error) { i.report("answering reads", err) },
	})
	return legacy, i.restore(fresh)
}

// takeOver claims the group and the in-flight table of the worker before.
func (i *Instance) takeOver() (*fanotify.Legacy, error) {
	groups, flights := i.held[fdGroup], i.held[fdInflight]
	if len(groups) == 0 || len(flights) == 0 {
		return nil, nil
	}
	i.group = groups[0]
	flight, err := fanotify.OpenInflight(flights[0])
	if err != nil {
		return nil, err
	}
	i.flight = flight
	var all []*sys.FD
	for _, fds := range i.held {
		all = append(all, fds...)
	}
	return fanotify.Occupy(i.group, i.flight, all)
}

// hold has the keeper hold fd, which is the instance's from then on.
func (i *Instance) hold(name string, fd *sys.FD) error {
	i.holdMu.Lock()
	i.pushed[name] = append(i.pushed[name], fd)
	i.holdMu.Unlock()
	return i.client.Push(name, fd)
}

// unhold takes back hold, also of the worker before.
func (i *Instance) unhold(name string) error {
	err := i.client.Remove(name)
	i.holdMu.Lock()
	fds := append(i.pushed[name], i.held[name]...)
	delete(i.pushed, name)
	delete(i.held, name)
	i.holdMu.Unlock()
	for _, fd := range fds {
		err = errors.Join(err, fd.Close())
	}
	return err
}

// heldNow is what the keeper has had for us from the start on and still has.
func (i *Instance) heldNow() keeper.Held {
	i.holdMu.Lock()
	defer i.holdMu.Unlock()
	return maps.Clone(i.held)
}

// openRoot opens the cache and has the keeper hold its lock.
func (i *Instance) openRoot() error {
	c := i.s.Config
	if i.group == nil {
		if err := i.probeRoot(c.Root); err != nil {
			return err
		}
	}
	var lock *sys.FD
	if locks := i.held[fdLock]; len(locks) > 0 {
		lock = locks[0]
	}
	root, err := cache.OpenRoot(c.Root, cache.RootOptions{
		Lock: lock, Holder: i.client.KeeperPID(),
		OnError: func(id ondemand.ObjectID, err error) {
			if errors.Is(err, cache.ErrLost) {
				i.forgetRead()
			}
			i.report("cache "+i.nameOf(id), err)
		},
	})
	if err != nil {
		return err // it names the root
	}
	i.root = root
	if i.library, err = prepare.Open(c.Root); err != nil {
		return err
	}
	if i.manifests, err = fileset.Open(c.Root); err != nil {
		return err
	}
	if i.records, err = openRecords(c.Root); err != nil {
		return err
	}
	return i.client.Push(fdLock, root.Lock())
}

// probeRoot tells why objects below dir cannot be served, before anything is
// made there.
func (i *Instance) probeRoot(dir string) error {
	err, doing := i.probe.HaveFanotifyPreContent(dir), "hold reads of what is not here yet"
	if err == nil && i.s.Bind == nil { // what is bound is read without
		err, doing = i.probe.HaveErofsFileMounts(dir), "make filesystems of files"
	}
	var no *features.UnsupportedError
	var unprivileged *features.PrivilegeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &no) && no.Filesystem != "":
		return &cache.FilesystemError{Dir: dir, Type: no.Filesystem}
	case errors.As(err, &no), errors.As(err, &unprivileged):
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("open cache root %s: %w", dir, bare(err))
}

// makeGroup makes a fanotify group that outlives this process.
func (i *Instance) makeGroup(ctx context.Context) error {
	if err := i.probe.HaveMountAPI(); err != nil {
		return fmt.Errorf("mount attached files: %w", err)
	}
	var err error
	if i.group, err = sys.FanotifyInit(); err != nil {
		return err
	}
	if i.flight, err = fanotify.NewInflight(descriptors); err != nil {
		return err
	}
	if err := errors.Join(i.client.Push(fdGroup, i.group), i.client.Push(fdInflight, i.flight.FD())); err != nil {
		return fmt.Errorf("hand the fanotify group to the keeper: %w", err)
	}
	// Nothing is marked before the keeper has them.
	if err := i.client.Barrier(ctx); err != nil {
		return fmt.Errorf("hand the fanotify group to the keeper: %w", err)
	}
	return nil
}

// close frees the parts, in the order in which nobody needs them any more. The
// group closes here for this process: readers must be gone, or a keeper hold it.
func (i *Instance) close() error {
	var errs []error
	if i.table != nil {
		errs = append(errs, i.table.Close())
	}
	if i.fetcher != nil {
		i.fetcher.Close()
	}
	if i.front != nil {
		errs = append(errs, i.front.Close())
	}
	for _, o := range i.objects {
		errs = append(errs, o.blob.Close(), o.cached.Close())
	}
	var closers []io.Closer
	if i.sources != nil {
		closers = append(closers, i.sources)
	}
	if i.root != nil {
		closers = append(closers, i.root)
	}
	if i.flight != nil {
		closers = append(closers, i.flight)
	}
	if i.group != nil {
		closers = append(closers, i.group)
	}
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
