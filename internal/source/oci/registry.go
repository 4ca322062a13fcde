package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/auth"
	"github.com/lacunafs/lacuna/internal/source/oci/hosts"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// registry is a repository at a registry and its mirrors.
type registry struct {
	ref    reference
	hosts  []*host
	ranges ranges

	life context.Context // ends at close
	end  context.CancelFunc
}

// newRegistry finds out who is to be asked; it makes no request.
func newRegistry(ref reference, opts Options) (*registry, error) {
	list, err := hosts.Load(opts.HostsDir, ref.registry)
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []hosts.Host{{Pull: true, Resolve: true}}
	}
	r := &registry{ref: ref, ranges: newRanges()}
	r.life, r.end = context.WithCancel(context.Background())
	shared := ranged.NewTransport(opts.connections())
	for _, said := range list {
		h, err := r.newHost(said, opts, shared)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// own is the address of the registry's own API.
func (r *registry) own(opts Options) (u url.URL, guess bool) {
	u = url.URL{Scheme: "https", Host: r.ref.registry, Path: "/v2"}
	switch {
	case u.Host == dockerHub:
		u.Host = dockerHubAPI
	case opts.PlainHTTP:
		u.Scheme = "http"
	case isLoopback(u.Host):
		u.Scheme, guess = "http", true
	}
	return u, guess
}

func (r *registry) newHost(said hosts.Host, opts Options, shared *http.Transport) (*host, error) {
	h := &host{
		pull: said.Pull, resolve: said.Resolve, header: said.Header,
		userAgent: opts.UserAgent, transport: shared, stall: opts.Stall,
	}
	if said.API != nil {
		if h.api = *said.API; h.api.Host == dockerHub {
			h.api.Host = dockerHubAPI // as people write it
		}
	} else {
		h.api, h.guess = r.own(opts)
	}
	if own, _ := r.own(opts); h.api.Host != own.Host {
		h.query = url.Values{"ns": {r.ref.registry}}.Encode() // as containerd tells mirrors
	}
	if !said.Plain() {
		tls, err := said.TLS(opts.TLS)
		if err != nil {
			return nil, err
		}
		c := opts.connections()
		c.TLS, c.Connect = tls, cmp.Or(said.Connect, c.Connect)
		if said.Proxy != nil {
			c.Proxy = http.ProxyURL(said.Proxy)
		}
		h.transport = ranged.NewTransport(c)
	}
	name := h.api.Host
	if name == dockerHubAPI {
		name = dockerHub
	}
	h.session = &auth.Session{
		Registry: name, Repository: r.ref.repository, Keyring: opts.keyring(), UserAgent: opts.UserAgent,
		Sender: h.sender(r.life), Insecure: h.insecure,
	}
	return h, nil
}

func (r *registry) close() error {
	r.end()
	for _, h := range r.hosts {
		h.session.Close()
		h.transport.CloseIdleConnections()
	}
	return nil
}

// inOrder are the places of hosts.toml in the order to ask them in: those that
// failed a short time ago come last.
func (r *registry) inOrder(rests func(place int) bool) []int {
	places := make([]int, len(r.hosts))
	for i := range places {
		places[i] = i
	}
	slices.SortStableFunc(places, func(a, b int) int {
		return cmp.Compare(number(rests(a)), number(rests(b)))
	})
	return places
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// each asks one host after the other until one succeeds.
func (r *registry) each(ctx context.Context, may func(*host) bool, ask func(*host) error) error {
	var failed allFailed
	for _, place := range r.inOrder(func(i int) bool { return r.hosts[i].rest.active() }) {
		h := r.hosts[place]
		if !may(h) {
			continue
		}
		if r.life.Err() != nil {
			return os.ErrClosed
		}
		err := ask(h)
		if err == nil {
			return nil
		}
		if ended(ctx, err) {
			return err
		}
		if ill(err) {
			h.rest.begin()
		}
		failed.add(h.api.Host, place, err)
	}
	return failed.err()
}

func (r *registry) resolve(ctx context.Context) (data []byte, d digest.Digest, kind string, err error) {
	if r.ref.digest != "" {
		data, kind, err = r.fetch(ctx, "/manifests/"+r.ref.digest.String(), func(h *host) bool { return h.pull },
			func(data []byte, _ http.Header) error { return verifyDigest(data, r.ref.digest) })
		return data, r.ref.digest, kind, err
	}
	data, kind, err = r.fetch(ctx, "/manifests/"+r.ref.tag, func(h *host) bool { return h.resolve },
		func(data []byte, h http.Header) error {
			claimed, err := digest.Parse(h.Get("Docker-Content-Digest"))
			if err != nil {
				return nil // a header that some registries do not have
			}
			return verifyDigest(data, claimed)
		})
	return data, digest.FromBytes(data), kind, err
}

func (r *registry) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	data, _, err := r.fetch(ctx, "/manifests/"+d.Digest.String(), func(h *host) bool { return h.pull },
		func(data []byte, _ http.Header) error { return verify(data, d) })
	return data, err
}

func (r *registry) config(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	data, _, err := r.fetch(ctx, "/blobs/"+d.Digest.String(), func(h *host) bool { return h.pull },
		func(data []byte, _ http.Header) error { return verify(data, d) })
	return data, err
}

// fetch gets a small document from the first host that has what check accepts.
func (r *registry) fetch(
	ctx context.Context, path string, may func(*host) bool, check func([]byte, http.Header) error,
) (data []byte, kind string, err error) {
	err = r.each(ctx, may, func(h *host) (err error) {
		var header http.Header
		if data, header, err = r.document(ctx, h, path); err != nil {
			return err
		}
		kind = header.Get("Content-Type")
		if err := check(data, header); err != nil {
			return fmt.Errorf("%s: %w", h.api.Host, err)
		}
		return nil
	})
	return data, kind, err
}

// document gets a small document of the repository from h.
func (r *registry) document(ctx context.Context, h *host, path string) ([]byte, http.Header, error) {
	var redirects ranged.Redirects
	h.redirects(r.life, &redirects, "/"+r.ref.repository+path)
	a, err := redirects.Get(ctx, http.Header{"Accept": {accepted}})
	if err != nil {
		return nil, nil, err
	}
	if a.StatusCode != http.StatusOK {
		return nil, nil, refused(a)
	}
	data, err := readAll(a)
	return data, a.Header, err
}

func readAll(a *ranged.Answer) ([]byte, error) {
	if err := ranged.CheckEncoding(a.Response); err != nil {
		return nil, a.Refuse(err)
	}
	data, err := io.ReadAll(io.LimitReader(a.Body, jsonLimit+1))
	if err == nil && len(data) > jsonLimit {
		err = fmt.Errorf("%w: a manifest of more than %d bytes", source.ErrNotBytes, jsonLimit)
	}
	return data, errors.Join(err, a.Body.Close())
}
