package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// blob is a layer in a registry.
type blob struct {
	registry   *registry
	layer      Layer
	legs       []*leg // as registry.hosts
	sequential bool

	life context.Context // ends with the registry's
	end  context.CancelFunc
}

// leg is the way to one blob at one host.
type leg struct {
	host      *host
	redirects ranged.Redirects
	rest      rest // the host has this blob not, or not rightly
}

func (r *registry) newBlob(l Layer) *blob {
	b := &blob{registry: r, layer: l}
	b.life, b.end = context.WithCancel(r.life)
	for _, h := range r.hosts {
		g := &leg{host: h}
		h.redirects(b.life, &g.redirects, "/"+r.ref.repository+"/blobs/"+l.Digest.String())
		b.legs = append(b.legs, g)
	}
	return b
}

func (r *registry) blob(ctx context.Context, l Layer) (source.Blob, error) {
	if r.life.Err() != nil {
		return nil, os.ErrClosed
	}
	b := r.newBlob(l)
	sequential, err := r.ranges.learn(ctx, b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.sequential = sequential
	return b, nil
}

func (b *blob) Size() int64 { return b.layer.Size }

// Sequential tells whether the registry has no range requests.
func (b *blob) Sequential() bool { return b.sequential }

// Identity is the layer's size and digest.
func (b *blob) Identity() source.Identity {
	return source.Identity{Size: b.layer.Size, Validator: b.layer.Digest.String()}
}

// Close ends open readers.
func (b *blob) Close() error {
	b.end()
	return nil
}

func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := b.readRange(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("read [%d,+%d) of %s in %s/%s: %w",
			off, n, short(b.layer.Digest), b.registry.ref.registry, b.registry.ref.repository, err)
	}
	return source.Exact(ctx, body, n), nil
}

func (b *blob) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, err
	}
	if b.life.Err() != nil {
		return nil, os.ErrClosed
	}
	return b.request(ctx, ranged.Want{Off: off, N: n, Ranged: !b.sequential})
}

// request asks one host after the other for w.
func (b *blob) request(ctx context.Context, w ranged.Want) (body io.ReadCloser, err error) {
	var failed allFailed
	refuted := source.RefutedIn(ctx)
	for _, place := range b.registry.inOrder(func(i int) bool { return b.legs[i].rests() }) {
		g := b.legs[place]
		if !g.host.pull || refuted.Has(g) {
			continue
		}
		body, err := b.ask(ctx, g, w)
		if err == nil {
			return &watched{ReadCloser: body, leg: g, ctx: ctx, blob: b, left: w.N}, nil
		}
		if ended(ctx, err) {
			return nil, err
		}
		g.failed(err)
		failed.add(g.host.api.Host, place, err)
	}
	if names := refuted.Names(); len(failed.errs) == 0 && names != "" {
		return nil, fmt.Errorf("%w: nobody is left to ask but %s", source.ErrNotBytes, names)
	}
	return nil, failed.err()
}

// rests tells whether the leg is asked last.
func (g *leg) rests() bool { return g.rest.active() || g.host.rest.active() }

// failed makes others be asked first for a while.
func (g *leg) failed(err error) {
	if ill(err) {
		g.host.rest.begin()
		return
	}
	g.rest.begin()
}

// ask asks one host, and returns the body of its response, checked so far that
// its first w.N bytes are those of the range.
func (b *blob) ask(ctx context.Context, g *leg, w ranged.Want) (io.ReadCloser, error) {
	// The digest in the address names the version; an ETag would say nothing
	// more, and the one of a redirect's target is another one.
	id := source.Identity{Size: b.layer.Size}
	a, err := g.redirects.Get(ctx, w.Header(id))
	if err != nil {
		return nil, err
	}
	length, err := check(a.Response, w, id)
	if err != nil {
		g.redirects.Forget() // a redirect to the wrong file is asked for anew
		if a.StatusCode == http.StatusOK && w.Off > 0 {
			err = &wholeError{err}
		}
		return nil, a.Refuse(hostError(g, err))
	}
	a.Expect(length)
	return a.Body, nil
}

// check is ranged.CheckResponse for what cannot change. A host that tells of another
// version of what a digest names has other bytes now, and may have the right ones later.
func check(resp *http.Response, w ranged.Want, id source.Identity) (length int64, err error) {
	length, err = ranged.CheckResponse(resp, w, id)
	if errors.Is(err, source.ErrChanged) {
		err = fmt.Errorf("%w: status %d: %s", source.ErrNotBytes, resp.StatusCode, err.Error())
	}
	return length, err
}

// hostError names the host, which the errors of statuses do by themselves.
func hostError(g *leg, err error) error {
	if errors.Is(err, ranged.ErrStatus) {
		return err
	}
	return fmt.Errorf("%s: %w", g.host.api.Host, err)
}

// wholeError is the whole layer in answer to a range. Caches in front of
// registries answer so while they fetch a layer for the first time.
type wholeError struct{ err error }

func (e *wholeError) Error() string   { return e.err.Error() }
func (e *wholeError) Unwrap() error   { return e.err }
func (e *wholeError) Temporary() bool { return true }

// watched is a body whose failure makes others be asked first.
type watched struct {
	io.ReadCloser
	leg  *leg
	ctx  context.Context
	blob *blob
	left int64 // bytes of the range that are still to come
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.left -= int64(n)
	early := errors.Is(err, io.EOF) && w.left > 0
	if (early || err != nil && !errors.Is(err, io.EOF)) && !ended(w.ctx, err) && len(w.blob.legs) > 1 {
		w.leg.failed(err)
		if errors.Is(err, source.ErrNotBytes) && w.elsewhere(func(g *leg) bool { return !g.rests() }) {
			err = &elsewhereError{err}
		}
	}
	return n, err
}

// elsewhere tells whether there is a leg that may be asked instead.
func (w *watched) elsewhere(may func(*leg) bool) bool {
	return slices.ContainsFunc(w.blob.legs, func(g *leg) bool { return g != w.leg && g.host.pull && may(g) })
}

// Refute implements source.Refutable.
func (w *watched) Refute() bool {
	w.leg.rest.begin()
	w.leg.redirects.Forget() // it may have led to the wrong file
	refuted := source.RefutedIn(w.ctx)
	refuted.Add(w.leg, w.leg.host.api.Host)
	return refuted != nil && w.elsewhere(func(g *leg) bool { return !refuted.Has(g) })
}

// elsewhereError is what one host fails with for good where another may not.
type elsewhereError struct{ err error }

func (e *elsewhereError) Error() string   { return e.err.Error() }
func (e *elsewhereError) Unwrap() error   { return e.err }
func (e *elsewhereError) Temporary() bool { return true }

// ranges is whether the hosts of a registry have range requests.
type ranges struct {
	turn       chan struct{} // holds one value: the right to read and write what follows
	known      bool
	sequential bool
}

func newRanges() ranges {
	r := ranges{turn: make(chan struct{}, 1)}
	r.turn <- struct{}{}
	return r
}

// assume takes it as known.
func (r *ranges) assume(sequential bool) {
	<-r.turn
	r.known, r.sequential = true, sequential
	r.turn <- struct{}{}
}

// learn finds it out with a request for the first byte of b, once. It is asked
// and not deduced from later reads because a blob's reader must know before it
// plans what to read.
func (r *ranges) learn(ctx context.Context, b *blob) (sequential bool, err error) {
	select {
	case <-r.turn:
		defer func() { r.turn <- struct{}{} }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if r.known || b.layer.Size == 0 {
		return r.sequential, nil
	}
	whole := false
	var failed allFailed
	for _, place := range b.registry.inOrder(func(i int) bool { return b.legs[i].host.rest.active() }) {
		g := b.legs[place]
		if !g.host.pull {
			continue
		}
		has, err := b.hasRanges(ctx, g)
		switch {
		case err == nil && has:
			r.known, r.sequential = true, false
			return false, nil
		case err == nil:
			whole = true
			g.rest.begin() // a host with ranges is better
		case ended(ctx, err):
			return false, err
		default:
			g.failed(err)
			failed.add(g.host.api.Host, place, err)
		}
	}
	if !whole {
		return false, failed.err()
	}
	r.known, r.sequential = true, true
	return true, nil
}

func (b *blob) hasRanges(ctx context.Context, g *leg) (bool, error) {
	w := ranged.Want{N: 1, Ranged: true}
	id := source.Identity{Size: b.layer.Size}
	a, err := g.redirects.Get(ctx, w.Header(id))
	if err != nil {
		return false, err
	}
	if _, err := check(a.Response, w, id); err != nil {
		g.redirects.Forget()
		return false, a.Refuse(hostError(g, err))
	}
	return a.StatusCode == http.StatusPartialContent, a.Finish()
}
