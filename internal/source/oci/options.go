package oci

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"context"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/auth"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// Options say which image is meant and how registries are spoken to. The zero
// value is good for registries; images in files need OpenFile.
type Options struct {
	// Platform chooses from an index: os/arch or os/arch/variant; empty: this
	// machine's, for which an image that is not in an index need not be.
	Platform string

	// Authfile has credentials in the form of docker's config.json or
	// podman's auth.json. It must exist; DockerConfig is not read then.
	Authfile string
	// DockerConfig is the directory of docker's config.json; empty: none. The
	// file may be missing.
	DockerConfig string

	// PlainHTTP speaks to the registry without encryption. Without it that
	// is done only on loopback, and where hosts.toml says http.
	PlainHTTP bool
	// HostsDir has mirrors and certificates as containerd lays them out;
	// empty: /etc/containerd/certs.d. It may be missing.
	HostsDir string

	// Sequential is for Reopen: the blobs of layers were sequential.
	Sequential bool

	// OpenFile opens a regular file of this machine, for oci-layout and docker-archive.
	OpenFile func(ctx context.Context, path string) (source.Blob, error)

	// UserAgent names the program; empty: "lacuna".
	UserAgent string
	// Stall is how long a body may deliver nothing before it fails; 0: 30 s.
	Stall time.Duration
	// ConnsPerHost bounds the connections to one host; 0: 16. HTTP/2 needs one.
	ConnsPerHost int
	// Connect bounds name resolution and connecting; 0: 10 s.
	Connect time.Duration
	// TLSHandshake bounds the handshake; 0: 10 s.
	TLSHandshake time.Duration
	// ResponseHeader bounds the wait from the request to its response's header; 0: 30 s.
	ResponseHeader time.Duration
	// TLS is the client's configuration, to which hosts.toml adds; nil: Go's defaults.
	TLS *tls.Config
	// Proxy chooses a proxy for a request, as http.Transport has it; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
}

func (o Options) withDefaults() Options {
	if o.HostsDir == "" {
		o.HostsDir = "/etc/containerd/certs.d"
	}
	if o.UserAgent == "" {
		o.UserAgent = "lacuna"
	}
	if o.Stall <= 0 {
		o.Stall = ranged.DefaultStall
	}
	return o
}

func (o Options) keyring() auth.Keyring {
	switch {
	case o.Authfile != "":
		return auth.Keyring{Files: []string{o.Authfile}}
	case o.DockerConfig != "":
		return auth.Keyring{Files: []string{filepath.Join(o.DockerConfig, "config.json")}, Optional: true}
	}
	return auth.Keyring{}
}

func (o Options) connections() ranged.Connections {
	return ranged.Connections{
		PerHost: o.ConnsPerHost, Connect: o.Connect, TLSHandshake: o.TLSHandshake,
		ResponseHeader: o.ResponseHeader, TLS: o.TLS, Proxy: o.Proxy,
	}
}
