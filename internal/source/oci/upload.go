package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/hosts"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// Upload is a repository that blobs and manifests are pushed to: at the registry
// itself, never at a mirror. It may be used concurrently. Nothing is tried again that
// source.Temporary would say is worth it.
type Upload struct {
	registry *registry
	host     *host
	stall    time.Duration
}

// commitTime is how long a registry may take to answer when it has all of a blob,
// which some copy then.
const commitTime = 5 * time.Minute

// OpenUpload makes no request. ref is that of a registry; it may have a tag, which is Tag.
func OpenUpload(ref string, opts Options) (*Upload, error) {
	r, err := parseReference(ref, exists)
	if err != nil {
		return nil, fmt.Errorf("push to %q: %w", ref, err)
	}
	if r.registry == "" {
		return nil, fmt.Errorf("push to %s: %w: no registry", r, ErrReference)
	}
	opts = opts.withDefaults()
	opts.ResponseHeader = max(opts.ResponseHeader, commitTime)
	u, err := newUpload(r, opts)
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", r, err)
	}
	return u, nil
}

func newUpload(r reference, opts Options) (*Upload, error) {
	reg, err := newRegistry(r, opts)
	if err != nil {
		return nil, err
	}
	u := &Upload{registry: reg, stall: opts.Stall}
	own, _ := reg.own(opts)
	for _, h := range reg.hosts {
		if h.api.Host == own.Host && h.api.Path == own.Path {
			u.host = h // with the certificates that hosts.toml names for it
		}
	}
	if u.host == nil {
		u.host, err = reg.newHost(hosts.Host{Pull: true, Resolve: true}, opts, ranged.NewTransport(opts.connections()))
		if err != nil {
			return nil, errors.Join(err, reg.close())
		}
		reg.hosts = append(reg.hosts, u.host) // to be closed
	}
	u.host.session.Actions = []string{"pull", "push"}
	return u, nil
}

// Close ends what is in progress.
func (u *Upload) Close() error { return u.registry.close() }

// Place is the registry and the repository.
func (u *Upload) Place() string { return u.registry.ref.place() }

// Tag is that of the reference; empty: it has a digest.
func (u *Upload) Tag() string { return u.registry.ref.tag }

// failed says of err what was being pushed.
func (u *Upload) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("push %s to %s: %w", what, u.Place(), err)
}

func (u *Upload) ask(ctx context.Context, method, path string, header http.Header, body []byte) (*ranged.Answer, error) {
	return u.host.ask(ctx, u.registry.life, "/"+u.registry.ref.repository+path, request{method, header, body})
}

// Has tells whether the repository has the blob d.
func (u *Upload) Has(ctx context.Context, d v1.Descriptor) (bool, error) {
	a, err := u.ask(ctx, http.MethodHead, "/blobs/"+d.Digest.String(), http.Header{}, nil)
	if err != nil {
		return false, u.failed(short(d.Digest), err)
	}
	switch a.StatusCode {
	case http.StatusOK, http.StatusTemporaryRedirect, http.StatusFound, http.StatusMovedPermanently:
		return true, u.failed(short(d.Digest), a.Body.Close())
	case http.StatusNotFound:
		return false, u.failed(short(d.Digest), a.Body.Close())
	}
	return false, u.failed(short(d.Digest), a.Refuse(ranged.ErrStatus))
}

// Blob pushes the blob d, whose bytes body has (distribution-spec, "POST then PUT").
// Where body ends early or fails, the registry gets no such blob.
func (u *Upload) Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	return u.failed(short(d.Digest), u.blob(ctx, d, body))
}

func (u *Upload) blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	a, err := u.ask(ctx, http.MethodPost, "/blobs/uploads/", http.Header{}, []byte{})
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusAccepted {
		return a.Refuse(ranged.ErrStatus)
	}
	at := a.Header.Get("Location")
	location, err := u.host.url("/" + u.registry.ref.repository + "/blobs/uploads/").Parse(at)
	if at == "" {
		err = errors.New("no Location")
	}
	if err := errors.Join(err, a.Finish()); err != nil {
		return fmt.Errorf("%w: no address to upload to: %w", source.ErrNotBytes, err)
	}
	query := location.Query()
	query.Set("digest", d.Digest.String())
	location.RawQuery = query.Encode()
	if err := u.put(ctx, location, d.Size, body); err != nil {
		u.forget(location)
		return err
	}
	return nil
}

// forgetTime bounds the request that ends an upload, for which somebody waits.
const forgetTime = 5 * time.Second

// forget tells the registry that an upload does not go on, so that it need not keep what
// it has of it. One that does not hear it does so by itself, later.
func (u *Upload) forget(upload *url.URL) {
	ctx, cancel := context.WithTimeout(u.registry.life, forgetTime)
	defer cancel()
	header, err := u.headers(ctx, upload, http.Header{})
	if err != nil {
		return
	}
	req := ranged.NewRequest(upload, header)
	req.Method = http.MethodDelete
	if a, err := u.host.sender(u.registry.life).Send(ctx, req); err == nil {
		a.Finish() //nolint:errcheck // it is not needed
	}
}

// headers are those of a request to where an upload was begun. Elsewhere nobody is to see
// who asks.
func (u *Upload) headers(ctx context.Context, to *url.URL, header http.Header) (http.Header, error) {
	if !u.host.isOwn(to) {
		return u.host.finish(header), nil
	}
	authorization, _, err := u.host.session.Authorization(ctx)
	return u.host.headers(header, authorization), err
}

// put sends body to where an upload was begun. It cannot be sent again, so the login
// that began it has to do.
func (u *Upload) put(ctx context.Context, to *url.URL, size int64, body io.Reader) error {
	header, err := u.headers(ctx, to, http.Header{"Content-Type": {"application/octet-stream"}})
	if err != nil {
		return err
	}
	req := ranged.NewRequest(to, header)
	req.Method = http.MethodPut
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sent := &outgoing{in: body, stall: u.stall}
	sent.timer = time.AfterFunc(u.stall, func() { cancel(errTakesNothing) })
	sent.timer.Stop()
	defer sent.timer.Stop()
	if req.ContentLength = size; size > 0 {
		req.Body = io.NopCloser(sent)
	}
	a, err := u.host.sender(u.registry.life).Send(ctx, req)
	cause := sent.err.Load()
	switch {
	case err != nil && cause != nil:
		return *cause // why there is no more to send
	case err != nil && errors.Is(context.Cause(ctx), errTakesNothing):
		return &ranged.RequestError{URL: to.Host, Err: errTakesNothing}
	case err != nil:
		return err
	case a.StatusCode != http.StatusCreated:
		return a.Refuse(ranged.ErrStatus)
	}
	return a.Finish()
}

var errTakesNothing = errors.New("it takes no more data")

// outgoing is a body that must be taken: between two reads of it the other side has
// stall to take what the first one gave.
type outgoing struct {
	in    io.Reader
	stall time.Duration
	timer *time.Timer
	err   atomic.Pointer[error] // of in; connections read bodies for longer than a request takes
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.timer.Stop()
	n, err := o.in.Read(p)
	switch {
	case err == nil:
		o.timer.Reset(o.stall)
	case !errors.Is(err, io.EOF):
		o.err.Store(&err)
	}
	return n, err
}

// Manifest pushes a manifest or an index under its digest. Where it has a subject, it is
// found by it from then on.
func (u *Upload) Manifest(ctx context.Context, data []byte, mediaType string) error {
	d := digest.FromBytes(data)
	listed, err := u.manifest(ctx, data, mediaType, d.String())
	if err != nil {
		return u.failed("manifest "+short(d), err)
	}
	var m v1.Manifest
	if json.Unmarshal(data, &m) != nil || m.Subject == nil || listed {
		return nil
	}
	entry := v1.Descriptor{
		MediaType: mediaType, Digest: d, Size: int64(len(data)), ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	}
	if entry.ArtifactType == "" {
		entry.ArtifactType = m.Config.MediaType // distribution-spec, "Pushing Manifests with Subject"
	}
	return u.failed("list of what refers to "+short(m.Subject.Digest), u.list(ctx, m.Subject.Digest, entry))
}

// Name pushes a manifest or an index under the tag.
func (u *Upload) Name(ctx context.Context, data []byte, mediaType, tag string) error {
	_, err := u.manifest(ctx, data, mediaType, tag)
	return u.failed(tag, err)
}

// manifest tells whether the registry lists it by its subject.
func (u *Upload) manifest(ctx context.Context, data []byte, mediaType, name string) (listed bool, err error) {
	a, err := u.ask(ctx, http.MethodPut, "/manifests/"+name, http.Header{"Content-Type": {mediaType}}, data)
	if err != nil {
		return false, err
	}
	if a.StatusCode != http.StatusCreated && a.StatusCode != http.StatusOK {
		return false, a.Refuse(ranged.ErrStatus)
	}
	return a.Header.Get("OCI-Subject") != "", a.Finish()
}

// list adds entry to the index that stands in for the list of referrers where the
// registry has none (distribution-spec, "Referrers Tag Schema").
func (u *Upload) list(ctx context.Context, subject digest.Digest, entry v1.Descriptor) error {
	tag := subject.Algorithm().String() + "-" + subject.Encoded()
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	a, err := u.ask(ctx, http.MethodGet, "/manifests/"+tag, http.Header{"Accept": {v1.MediaTypeImageIndex}}, nil)
	switch {
	case err != nil:
		return err
	case a.StatusCode == http.StatusOK:
		data, err := readAll(a)
		if err != nil {
			return err
		}
		if index.Manifests, err = parseList(data); err != nil {
			return err
		}
	case a.StatusCode == http.StatusNotFound:
		if err := a.Finish(); err != nil {
			return err
		}
	default:
		return a.Refuse(ranged.ErrStatus)
	}
	if slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == entry.Digest }) {
		return nil
	}
	index.Manifests = append(index.Manifests, entry)
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	_, err = u.manifest(ctx, data, v1.MediaTypeImageIndex, tag)
	return err
}
