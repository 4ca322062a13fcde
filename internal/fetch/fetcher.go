package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrExists: Add was called for an object that is there.
	ErrExists = errors.New("object was added already")
	// ErrDigest: the complete object does not have the digest that it must
	// have. Its data was given up and nothing more is fetched until it is
	// added anew.
	ErrDigest = errors.New("object does not have the expected digest")
	// ErrSize: the source's blob and the object differ in size.
	ErrSize = errors.New("object and source differ in size")
)

// CacheObject is an object as it lies in the cache, as far as a Fetcher needs it.
type CacheObject interface {
	// The questions of a front end; Has here only answers.
	ondemand.Object
	// Present is the number of bytes present.
	Present() int64
	// Fill writes p at off and makes it present. off is a multiple of the
	// block size, and p is whole blocks or ends at the object's end. When
	// it fails, nothing of p becomes present.
	Fill(p []byte, off int64) error
	// Checkpoint makes everything that is present durable; afterwards
	// Complete tells whether that is all.
	Checkpoint() error
}

// Digested is implemented by cache objects that may have an expected digest.
type Digested interface {
	// SHA256 is the expected digest of the whole in lower-case hexadecimal
	// digits, or empty. Verified tells whether the data was found to have it.
	SHA256() string
	Verified() bool
	// ReadAt reads present data, past any front end.
	ReadAt(p []byte, off int64) (int, error)
	// SetVerified records that the data has the digest. Invalidate makes
	// every block of r missing, durably.
	SetVerified() error
	Invalidate(r ondemand.Range) error
}

// Options of a Fetcher. The zero value works.
type Options struct {
	// Memory bounds the buffers in flight, in bytes; zero means 64 MiB, and
	// less than 1 MiB means 1 MiB. A quarter is kept for demands.
	Memory int64
	// Conns bounds the concurrent requests of a group of blobs; zero means
	// 16, and 1 means 2. Half of them are kept for demands.
	Conns int
	// Group names the group that shares Conns, such as the host of a URL.
	// nil makes every object a group of its own.
	Group func(id ondemand.ObjectID, blob source.Blob) string
	// Present, if not nil, is called after blocks of r became present, and
	// once more with the whole object after its digest was verified. It is
	// called concurrently and must not wait for a Fill, Remove or Close.
	Present func(id ondemand.ObjectID, r ondemand.Range)
	// OnError, if not nil, is told errors that no caller gets: of
	// read-ahead that nobody waited for, and of verification. It must not
	// wait for Remove or Close, which wait for it.
	OnError func(id ondemand.ObjectID, err error)
}

// Fetcher fills objects from their sources. It implements ondemand.Filler.
type Fetcher struct {
	options Options
	memory  *gate
	buffers buffers
	kicks   chan kick
	ctx     context.Context
	cancel  context.CancelFunc
	idle    sync.WaitGroup // the goroutine that takes kicks

	mu      sync.Mutex
	closed  bool
	objects map[ondemand.ObjectID]*Object
	groups  map[string]*group
}

// group is the blobs that share a bound on requests.
type group struct {
	name    string
	slots   *gate
	objects int
}

// kick says that a reader crossed the trigger of one of object's heads.
type kick struct {
	object *Object
	head   int
}

// New returns a Fetcher without objects.
func New(options Options) *Fetcher {
	if options.Memory == 0 {
		options.Memory = 64 << 20
	}
	options.Memory = max(options.Memory, 4*piece)
	if options.Conns == 0 {
		options.Conns = 16
	}
	options.Conns = max(options.Conns, 2)
	if options.Present == nil {
		options.Present = func(ondemand.ObjectID, ondemand.Range) {}
	}
	if options.OnError == nil {
		options.OnError = func(ondemand.ObjectID, error) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fetcher{
		options: options,
		memory:  newGate(options.Memory, options.Memory/4*3),
		kicks:   make(chan kick, 256),
		ctx:     ctx,
		cancel:  cancel,
		objects: make(map[ondemand.ObjectID]*Object),
		groups:  make(map[string]*group),
	}
	f.idle.Go(f.takeKicks)
	return f
}

// takeKicks begins the windows that Object.Has found to be due, which it
// cannot do itself in a front end's reading loop.
func (f *Fetcher) takeKicks() {
	for {
		select {
		case k := <-f.kicks:
			k.object.cross(k.head)
		case <-f.ctx.Done():
			return
		}
	}
}

// Add makes f fill obj from blob. Both stay the caller's, who closes them
// after Remove.
func (f *Fetcher) Add(obj CacheObject, blob source.Blob) (*Object, error) {
	id := obj.ID()
	if obj.Size() != blob.Size() {
		return nil, fmt.Errorf("add %s: %w: %d and %d bytes", id.Short(), ErrSize, obj.Size(), blob.Size())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("add %s: %w", id.Short(), ondemand.ErrFlushed)
	}
	if f.objects[id] != nil {
		return nil, fmt.Errorf("add %s: %w", id.Short(), ErrExists)
	}
	name := "object " + string(id)
	if f.options.Group != nil {
		name = "group " + f.options.Group(id, blob)
	}
	g := f.groups[name]
	if g == nil {
		n := int64(f.options.Conns)
		g = &group{name: name, slots: newGate(n, n/2)}
		f.groups[name] = g
	}
	g.objects++
	o := newObject(f, g, obj, blob)
	f.objects[id] = o
	o.verifyIfDue()
	return o, nil
}

// Remove ends all work for an object: every Fill of it returns
// ondemand.ErrDetached, and when Remove returns nothing of it runs in f.
// Removing an object that is not there does nothing.
func (f *Fetcher) Remove(id ondemand.ObjectID) {
	f.mu.Lock()
	o := f.objects[id]
	f.mu.Unlock()
	if o == nil {
		return
	}
	o.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.objects[id] != o {
		return // removed by somebody else meanwhile
	}
	delete(f.objects, id)
	if o.group.objects--; o.group.objects == 0 {
		delete(f.groups, o.group.name)
	}
}

// Close removes all objects.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	ids := make([]ondemand.ObjectID, 0, len(f.objects))
	for id := range f.objects {
		ids = append(ids, id)
	}
	f.mu.Unlock()
	f.cancel()
	for _, id := range ids {
		f.Remove(id)
	}
	f.idle.Wait()
}

func (f *Fetcher) object(id ondemand.ObjectID) (*Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.objects[id]; o != nil {
		return o, nil
	}
	return nil, ondemand.ErrDetached
}

// Fill implements ondemand.Filler.
func (f *Fetcher) Fill(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	o, err := f.object(id)
	if err == nil {
		err = o.fill(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("fill %s %v: %w", id.Short(), r, err)
	}
	return nil
}
