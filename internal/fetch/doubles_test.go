package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	testID = ondemand.ObjectID("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
)

// kept is a cache object in memory. It notes blocks that are written though
// they are present.
type kept struct {
	id   ondemand.ObjectID
	size int64
	*ondemand.Presence
	sum    string // expected digest
	onFill func(r ondemand.Range) error
	// onLook is called after each look at what is missing
	onLook func()
	// forgetful: what is filled is missing again at once
	forgetful  bool
	unreadable error // what ReadAt returns
	mayRewrite bool  // check lets blocks pass that were written twice

	mu        sync.Mutex
	data      []byte
	verified  bool
	fills     int
	rewritten []ondemand.Range
}

func newKept(size int64) *kept {
	return &kept{id: testID, size: size, Presence: ondemand.NewPresence(size), data: make([]byte, size)}
}

func (k *kept) ID() ondemand.ObjectID { return k.id }
func (k *kept) Present() int64        { return k.Bytes() }
func (k *kept) SHA256() string        { return k.sum }
func (k *kept) Checkpoint() error     { return nil }

func (k *kept) Fill(p []byte, off int64) error {
	r := ondemand.Range{Off: off, Len: int64(len(p))}
	if r.Empty() || r.Blocks(k.size) != r {
		panic(fmt.Sprintf("fill of %v, which is not whole blocks", r))
	}
	if k.onFill != nil {
		if err := k.onFill(r); err != nil {
			return fmt.Errorf("fill %v: %w", r, err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fills++
	k.rewritten = append(k.rewritten, k.Presence.Present(r)...)
	copy(k.data[off:], p)
	if !k.forgetful {
		k.Set(r)
	}
	return nil
}

func (k *kept) Missing(r ondemand.Range) []ondemand.Range {
	missing := k.Presence.Missing(r)
	if k.onLook != nil {
		k.onLook()
	}
	return missing
}

func (k *kept) ReadAt(p []byte, off int64) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unreadable != nil {
		return 0, k.unreadable
	}
	return bytes.NewReader(k.data).ReadAt(p, off)
}

func (k *kept) Verified() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.verified
}

func (k *kept) SetVerified() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.verified = true
	return nil
}

func (k *kept) Invalidate(r ondemand.Range) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Clear(r)
	return nil
}

// check fails unless what is present is the pattern's.
func (k *kept) check(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.Presence.Present(ondemand.Range{Len: k.size}) {
		if !bytes.Equal(k.data[r.Off:r.End()], pattern(r.Off, r.Len)) {
			t.Errorf("wrong bytes in %v", r)
		}
	}
	if len(k.rewritten) > 0 && !k.mayRewrite {
		t.Errorf("present blocks were written again: %v", k.rewritten)
	}
}

// tile is what the pattern repeats. Its length is prime, so that no two blocks
// of a test's object are alike, and copying it is all that the pattern costs.
var tile = func() []byte {
	p := make([]byte, 1048573)
	if _, err := mem.PatternAt(3).ReadAt(p, 0); err != nil {
		panic(err)
	}
	return p
}()

// readPattern fills p with the pattern from off.
func readPattern(p []byte, off int64) {
	for len(p) > 0 {
		n := copy(p, tile[off%int64(len(tile)):])
		p, off = p[n:], off+int64(n)
	}
}

func pattern(off, n int64) []byte {
	p := make([]byte, n)
	readPattern(p, off)
	return p
}

func patternSum(size int64) string {
	sum := sha256.Sum256(pattern(0, size))
	return hex.EncodeToString(sum[:])
}

// scripted is a blob of the pattern whose requests the test lets go on step
// by step.
type scripted struct {
	size    int64
	ordered bool
	free    bool // requests go on by themselves

	mu    sync.Mutex
	calls []*call // not looked at yet
	asked []ondemand.Range
}

// call is one request that a scripted blob got.
type call struct {
	ondemand.Range
	ctx    context.Context
	free   bool
	more   chan int64
	broken chan error
	closed chan struct{}
	off    int64 // of the next byte
	left   int64 // that may be read before the next step
}

func (b *scripted) Size() int64      { return b.size }
func (b *scripted) Close() error     { return nil }
func (b *scripted) Sequential() bool { return b.ordered }

func (b *scripted) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, err
	}
	r := ondemand.Range{Off: off, Len: n}
	c := &call{
		Range: r, ctx: ctx, free: b.free, off: off,
		more: make(chan int64, 1000), broken: make(chan error, 1), closed: make(chan struct{}),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, r)
	if !b.free {
		b.calls = append(b.calls, c)
	}
	return c, nil
}

func (c *call) Read(p []byte) (int, error) {
	if c.off == c.End() {
		return 0, io.EOF
	}
	for c.left == 0 && !c.free {
		select {
		case n := <-c.more:
			c.left += n
		case err := <-c.broken:
			return 0, err
		case <-c.ctx.Done():
			return 0, fmt.Errorf("read: %w", c.ctx.Err())
		}
	}
	n := min(int64(len(p)), c.End()-c.off)
	if !c.free {
		n = min(n, c.left)
	}
	readPattern(p[:n], c.off)
	c.off += n
	c.left -= n
	return int(n), nil
}

func (c *call) Close() error {
	close(c.closed)
	return nil
}

// give lets n more bytes come and waits until they have been dealt with.
func (c *call) give(n int64) {
	c.more <- n
	synctest.Wait()
}

// fail breaks the request.
func (c *call) fail(err error) {
	c.broken <- err
	synctest.Wait()
}

func (c *call) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// next returns the one request that was made since the last look.
func (b *scripted) next(t *testing.T) *call {
	t.Helper()
	all := b.all(t)
	if len(all) != 1 {
		t.Fatalf("%d requests, want one: %v", len(all), all)
	}
	return all[0]
}

// all returns the requests that were made since the last look, by offset.
func (b *scripted) all(t *testing.T) []*call {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.calls
	b.calls = nil
	slices.SortFunc(all, func(x, y *call) int { return int(x.Off - y.Off) })
	return all
}

func (b *scripted) none(t *testing.T) {
	t.Helper()
	if all := b.all(t); len(all) > 0 {
		t.Fatalf("requests %v, want none", all[0].Range)
	}
}

// rig is a Fetcher with one object of the pattern.
type rig struct {
	*Fetcher
	t      *testing.T
	cache  *kept
	blob   *scripted
	object *Object

	mu      sync.Mutex
	present []ondemand.Range
	errs    []error
}

func newRig(t *testing.T, size int64, change func(*rig, *Options)) *rig {
	t.Helper()
	return newRigOn(t, size, change, func(g *rig) source.Blob { return g.blob })
}

// newRigOn is newRig with a blob around the scripted one.
func newRigOn(t *testing.T, size int64, change func(*rig, *Options), wrap func(*rig) source.Blob) *rig {
	t.Helper()
	g := &rig{t: t, cache: newKept(size), blob: &scripted{size: size}}
	options := Options{
		Present: func(_ ondemand.ObjectID, r ondemand.Range) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.present = append(g.present, r)
		},
		OnError: func(_ ondemand.ObjectID, err error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.errs = append(g.errs, err)
		},
	}
	if change != nil {
		change(g, &options)
	}
	g.Fetcher = New(options)
	t.Cleanup(g.Close)
	var err error
	if g.object, err = g.Add(g.cache, wrap(g)); err != nil {
		t.Fatal(err)
	}
	return g
}

// filling is a Fill that runs.
type filling struct {
	t      *testing.T
	cancel context.CancelFunc
	result chan error
}

func (g *rig) start(off, n int64) *filling {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	f := &filling{t: g.t, cancel: cancel, result: make(chan error, 1)}
	go func() { f.result <- g.Fill(ctx, testID, ondemand.Range{Off: off, Len: n}) }()
	synctest.Wait()
	return f
}

func (f *filling) sleeps() {
	f.t.Helper()
	synctest.Wait()
	select {
	case err := <-f.result:
		f.t.Fatalf("fill ended with %v, should sleep", err)
	default:
	}
}

func (f *filling) ended() error {
	f.t.Helper()
	synctest.Wait()
	select {
	case err := <-f.result:
		f.cancel()
		return err
	default:
		f.t.Fatal("fill sleeps, should have ended")
		return nil
	}
}

func (f *filling) succeeds() {
	f.t.Helper()
	if err := f.ended(); err != nil {
		f.t.Fatalf("fill: %v", err)
	}
}

// read is a read as a front end makes it: asked for, and filled where missing.
func (g *rig) read(off, n int64) {
	g.t.Helper()
	r := ondemand.Range{Off: off, Len: n}.Blocks(g.cache.size)
	if !g.object.Has(r) {
		if err := g.Fill(g.t.Context(), testID, r); err != nil {
			g.t.Fatalf("read %v: %v", r, err)
		}
	}
	synctest.Wait()
}
