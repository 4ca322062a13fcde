package httprange

import (
	"crypto/tls"
	"net/http"
	"net/url"
	"time"

	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// Options say how a server is spoken to. The zero value is good.
type Options struct {
	// Header is added to each request to the URL's own scheme, host and
	// port, and not to the targets of redirects elsewhere. An Authorization in it wins
	// over user name and password in the URL.
	Header http.Header
	// UserAgent names the program; empty: "lacuna".
	UserAgent string
	// Stall is how long a body may deliver nothing before it fails; 0: 30 s.
	Stall time.Duration
	// Sequential is for Reopen: the blob was sequential when it was opened.
	Sequential bool

	// Transport holds connections that blobs share, made by NewTransport,
	// whose caller closes its idle connections in the end. nil: the blob
	// makes its own from the fields below, and closes them itself.
	Transport *http.Transport

	// ConnsPerHost bounds the connections to one host; 0: 16. HTTP/2 needs one.
	ConnsPerHost int
	// Connect bounds name resolution and connecting; 0: 10 s.
	Connect time.Duration
	// TLSHandshake bounds the handshake; 0: 10 s.
	TLSHandshake time.Duration
	// ResponseHeader bounds the wait from the request to its response's header; 0: 30 s.
	ResponseHeader time.Duration
	// TLS is the client's configuration, such as more root certificates; nil: Go's defaults.
	TLS *tls.Config
	// Proxy chooses a proxy for a request, as http.Transport has it; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
}

func (o Options) withDefaults() Options {
	if o.UserAgent == "" {
		o.UserAgent = "lacuna"
	}
	if o.Stall <= 0 {
		o.Stall = ranged.DefaultStall
	}
	return o
}

// NewTransport makes connections for several blobs to share.
func NewTransport(opts Options) *http.Transport {
	return ranged.NewTransport(ranged.Connections{
		PerHost: opts.ConnsPerHost, Connect: opts.Connect, TLSHandshake: opts.TLSHandshake,
		ResponseHeader: opts.ResponseHeader, TLS: opts.TLS, Proxy: opts.Proxy,
	})
}
